"""A headless Chromium, told what to do through a pipe."""

import base64
import json
import os
import pathlib
import shutil
import subprocess
import time

CHROMIUM = next(
    filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None
)
WORDS = (
    '--headless=new',
    '--no-sandbox',  # Root may not use it.
    '--disable-gpu',
    '--disable-dev-shm-usage',
    '--no-first-run',
    '--disable-background-networking',
    '--remote-debugging-pipe',
)


class Browser:
    """One page; `requests` holds the addresses that it asked for, `messages` what it complained of.

    Args:
        folder: for the browser's own files.
        size: of the window, (width, height).
        scale: pixels of the screen a pixel of the page.
    """

    def __init__(self, folder: pathlib.Path, size: tuple[int, int] = (1200, 900), scale: int = 1):
        ours, theirs = os.pipe(), os.pipe()
        # Chromium reads file 3 and writes file 4.
        words = [CHROMIUM, *WORDS, f'--user-data-dir={folder}', 'about:blank']
        self.process = subprocess.Popen(
            ['bash', '-c', f'exec "$@" 3<&{ours[0]} 4>&{theirs[1]}', 'bash', *words],
            pass_fds=(ours[0], theirs[1]),
            stderr=subprocess.DEVNULL,
        )
        os.close(ours[0])
        os.close(theirs[1])
        self.to, self.back = os.fdopen(ours[1], 'wb', 0), os.fdopen(theirs[0], 'rb', 0)
        self.count, self.left, self.requests, self.messages = 0, b'', [], []
        self.session = None
        targets = self.ask('Target.getTargets')['targetInfos']
        target = next(one['targetId'] for one in targets if one['type'] == 'page')
        self.session = self.ask('Target.attachToTarget', targetId=target, flatten=True)['sessionId']
        for domain in ('Page', 'Network', 'Runtime', 'Log'):
            self.ask(f'{domain}.enable')
        width, height = size
        screen = {'width': width, 'height': height, 'deviceScaleFactor': scale}
        self.ask('Emulation.setDeviceMetricsOverride', mobile=scale > 1, **screen)

    def ask(self, method, **params):
        """What the browser answers."""
        self.count += 1
        told = {'id': self.count, 'method': method, 'params': params}
        told |= {'sessionId': self.session} if self.session else {}
        self.to.write(json.dumps(told).encode() + b'\0')
        while True:
            answer = self._next()
            if answer.get('id') == self.count:
                assert 'error' not in answer, answer['error']
                return answer['result']
            if answer.get('method') == 'Network.requestWillBeSent':
                self.requests.append(answer['params']['request']['url'])
            if answer.get('method') in ('Runtime.exceptionThrown', 'Log.entryAdded'):
                self.messages.append(answer['params'])

    def _next(self):
        while b'\0' not in self.left:
            data = self.back.read(1 << 16)
            assert data, 'the browser ended'
            self.left += data
        message, self.left = self.left.split(b'\0', 1)
        return json.loads(message)

    def value(self, code: str):
        """Of an expression in the page, awaited."""
        given = {'expression': code, 'awaitPromise': True, 'returnByValue': True}
        answer = self.ask('Runtime.evaluate', **given)
        assert 'exceptionDetails' not in answer, answer['exceptionDetails']
        return answer['result'].get('value')

    def until(self, code: str, seconds: float = 60):
        """Waits until an expression in the page is true."""
        end = time.monotonic() + seconds
        while not self.value(code):
            assert time.monotonic() < end, (code, self.messages)
            time.sleep(0.05)

    def open(self, address: str):
        """Goes to an address and waits for the whole page."""
        self.ask('Page.navigate', url=address)
        self.until("location.href !== 'about:blank' && document.readyState === 'complete'")

    def screenshot(self, path: pathlib.Path, whole: bool = False):
        data = self.ask('Page.captureScreenshot', captureBeyondViewport=whole)['data']
        path.write_bytes(base64.b64decode(data))

    def close(self):
        self.to.close()
        self.back.close()
        self.process.terminate()
        self.process.wait(30)
