"""DVC and Oxen on a directory, in a Python of their own: `peer_files.py NAME SHAPE PLACE`.

PLACE/repository/data holds the files. Prints seconds of each act, and bytes stored again, as JSON.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path


def main(name: str, shape: str, place: Path) -> dict[str, float | None]:
    """Do all acts once; each peer works on the same data in the same order."""
    repository = place / "repository"
    os.chdir(repository)
    product = {"dvc": Dvc, "oxen": Oxen}[name](repository)
    said: dict[str, float | None] = {"add": timed(product.add), "status": timed(product.status)}
    before = stored(product.store)
    change(repository / "data", shape)
    said["again"] = timed(product.add)
    said["again_bytes"] = float(stored(product.store) - before)
    said["checkout"] = product.checkout()
    return said


class Dvc:
    """Commands of `dvc`, as calls."""

    def __init__(self, repository: Path) -> None:
        from dvc.repo import Repo

        self.repo = Repo.init(no_scm=True)
        self.store = repository / ".dvc"
        self.data = repository / "data"

    def add(self) -> None:
        self.repo.add(["data"])

    def status(self) -> None:
        self.repo.status()

    def checkout(self) -> float | None:
        shutil.rmtree(self.data)
        return timed(lambda: self.repo.checkout(force=True))


class Oxen:
    """Commands of `oxen`, as calls; 0.65 cannot check out a commit that its API made."""

    def __init__(self, repository: Path) -> None:
        os.environ["HOME"] = str(repository.parent)  # it keeps who the user is there
        import oxen
        from oxen.user import config_user

        config_user("bench", "bench@example.org")
        self.repo = oxen.Repo(str(repository))
        self.repo.init()
        self.store = repository / ".oxen"

    def add(self) -> None:
        self.repo.add("data")
        self.repo.commit("a version")

    def status(self) -> None:
        self.repo.status()

    def checkout(self) -> float | None:
        return None


def change(data: Path, shape: str) -> None:
    """1 % of the files anew, or 1 % inserted in the middle of the large one."""
    chance = random.Random(2)
    if shape == "small":
        files = sorted(data.rglob("*.bin"))
        for file in chance.sample(files, len(files) // 100):
            file.unlink()  # it may be a link into the store
            file.write_bytes(chance.randbytes(4096))
        return
    [file] = data.iterdir()
    whole = file.read_bytes()
    middle = len(whole) // 2
    file.unlink()
    file.write_bytes(whole[:middle] + chance.randbytes(len(whole) // 100) + whole[middle:])


def stored(folder: Path) -> int:
    """Bytes of all files below `folder`."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def timed(call: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


if __name__ == "__main__":
    answer = main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
    print(json.dumps(answer))
