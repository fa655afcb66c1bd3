"""Small file systems in memory, which only root may mount."""

import os
import shutil
import subprocess
import time
from pathlib import Path


def mount(folder: Path, megabytes: int) -> str | None:
    """Mounts one at `folder`; returns why it could not."""
    if not shutil.which("mount"):
        return "no mount command"
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", folder]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stderr.strip() if done.returncode else None


def remount(folder: Path, mode: str) -> bool:
    """Makes it read-only (`ro`) or writable again (`rw`); refused for as long as a file is open for writing."""
    end = time.monotonic() + 100
    while time.monotonic() < end:
        if not subprocess.run(["mount", "-o", f"remount,{mode}", folder], capture_output=True).returncode:
            return True
        time.sleep(0.005)
    return False


def unmount(folder: Path) -> None:
    if os.path.ismount(folder):
        subprocess.run(["umount", "-l", folder], check=True)
