"""What every floor above reads, writes and says: whole files, pictures, tables, progress."""

CONFIG = 'config.json'  # The config of a run, in its folder.
