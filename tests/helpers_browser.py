"A page in headless Chromium, driven by a script of this folder"
import json, os, shutil, subprocess, sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT/'tools'))
from npm import npm_files  # noqa: E402

def playwright() -> str | None:
    "Where playwright-core is: in NODE_PATH, in node_modules, or else from npm"
    for folder in [*os.environ.get('NODE_PATH', '').split(os.pathsep), ROOT/'node_modules']:
        if folder and (Path(folder)/'playwright-core').exists():
            return str(Path(folder)/'playwright-core')
    found = npm_files('playwright-core', '1.65.1', '.')
    return found and str(found)

def browser_or_skip() -> tuple[str, str]:
    "playwright-core and Chromium; the test is skipped where one is not at hand"
    names = 'chromium', 'chromium-browser', 'google-chrome', 'chrome'
    chromium = next(filter(None, map(shutil.which, names)), None)
    if not chromium: pytest.skip('no Chromium is installed')
    if not shutil.which('node'): pytest.skip('node is not installed')
    if not (driver := playwright()): pytest.skip('npm package playwright-core is not at hand')
    return driver, chromium

def in_browser(script: str, *arguments) -> dict:
    "What a script of tests/ prints as JSON"
    command = ['node', ROOT/'tests'/script, *arguments]
    done = subprocess.run(command, text=True, capture_output=True, timeout=900)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)
