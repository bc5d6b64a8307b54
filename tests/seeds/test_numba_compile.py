"""Test the decorator `compiled` and its cache on disk."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from seeds import numba_compile
from seeds.numba_compile import compiled


def test_without_a_folder_for_machine_code_functions_still_compile() -> None:
    """A function without a file has no place where numba could keep its code, as on a read-only system."""
    scope: dict[str, Any] = {}
    exec("def double(x): return 2 * x", scope)
    assert compiled(scope["double"])(21) == 42


def test_compiled_code_follows_changes_of_other_files(tmp_path: Path) -> None:
    """A compiled function that calls one of another file is compiled anew when that file changes."""
    folder = tmp_path / "seeds" / "crf"
    folder.mkdir(parents=True)
    for package in (folder, folder.parent):
        (package / "__init__.py").touch()
    shutil.copy(numba_compile.__file__, folder.parent / "numba_compile.py")
    caller = "from seeds.numba_compile import compiled\nfrom seeds.crf.helper import helper\n\n"
    (folder / "caller.py").write_text(caller + "@compiled\ndef caller(x):\n    return 10 * helper(x)\n")
    run = [sys.executable, "-c", "from seeds.crf.caller import caller; print(caller(1), len(caller.stats.cache_hits))"]
    seen = []
    for number in (2, 2, 3):
        (folder / "helper.py").write_text(
            f"from seeds.numba_compile import compiled\n\n@compiled\ndef helper(x):\n    return {number} * x\n"
        )
        environment = os.environ | {"PYTHONPATH": str(tmp_path), "PYTHONSAFEPATH": "1"}
        done = subprocess.run(run, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True)
        seen.append(done.stdout.split())
    assert seen == [["20", "0"], ["20", "1"], ["30", "0"]]
