"""The site of the docs builds without a warning: links, anchors, pages of the menu and the API reference."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_site_builds_strictly_and_holds_reference_changelog_and_pictures(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path / "site"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    pages = {
        name: (tmp_path / "site" / f"{name}.html").read_text(encoding="utf-8")
        for name in ("api/index", "api/kernels", "changelog", "contributing", "performance", "examples")
    }
    assert "accelerate" in pages["api/index"] and "share of query-key pairs to skip" in pages["api/index"].lower()
    assert "log-sum-exp" in pages["api/kernels"].lower() or "lse" in pages["api/kernels"].lower()
    assert "Keep a Changelog" in pages["changelog"] and 'href="architecture.html"' in pages["contributing"]
    assert "dittools.register" in re.sub(r"<[^>]+>", "", pages["examples"])
    shown = re.findall(r'(?:src|srcset)="(pictures/[^"]+)"', pages["performance"])
    assert len(shown) == 4 and all((tmp_path / "site" / path).is_file() for path in shown)
