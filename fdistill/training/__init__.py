"""The one trainer: state, step, sharding, checkpoints, writer and loop. It knows a method by its
type only."""
