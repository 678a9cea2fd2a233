"""The package as it is installed: what a wheel holds, what an import does, and the name `kernels`.

`kernels` is the import name of Hugging Face's hub library too; kernels/README.md says how both live.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import textwrap
import zipfile
from email.message import Message
from email.parser import HeaderParser
from importlib.machinery import PathFinder
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Where the requirements are. `python -S` reads no .pth file, so with these folders on its path it finds torch
# but no editable installation: a run sees the copy of trimtok_fast that it is given and no other.
REQUIREMENTS = [entry for entry in sys.path if Path(entry).name in ("site-packages", "dist-packages")]


def run_python(code: str, *path: Path, cwd: Path) -> str:
    """Run `code` in a fresh interpreter, `path` before the requirements; return all that it prints."""
    result = subprocess.run(
        [sys.executable, "-S", "-c", textwrap.dedent(code)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [*path, *REQUIREMENTS]))},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stdout
    return result.stdout


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the source tree: a build writes into it, and an old build folder would reach the wheel."""
    copy = tmp_path_factory.mktemp("checkout") / "trimtok_fast"
    made = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "*.egg-info", "trimtok-demo")
    shutil.copytree(ROOT, copy, symlinks=True, ignore=made)
    return copy


def build(hook: str, checkout: Path, target: Path) -> Path:
    """Build as pip would, by the build backend's `hook`, but without a network."""
    target.mkdir()
    code = f"from setuptools import build_meta; build_meta.{hook}({str(target)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=checkout, check=True, capture_output=True, timeout=120)
    (wheel,) = target.glob("*.whl")
    return wheel


@pytest.fixture(scope="session")
def wheel(checkout: Path) -> Path:
    return build("build_wheel", checkout, checkout.parent / "wheel")


@pytest.fixture(scope="session")
def wheel_names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.fixture(scope="session")
def unpacked_wheel(wheel: Path) -> Path:
    target = wheel.parent / "unpacked"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    return target


@pytest.fixture(scope="session")
def metadata(unpacked_wheel: Path) -> Message:
    (path,) = unpacked_wheel.glob("*.dist-info/METADATA")
    return HeaderParser().parsestr(path.read_text(encoding="utf-8"))


# The wheel


def test_wheel_holds_every_file_of_the_package(checkout: Path, wheel_names: set[str]) -> None:
    package = checkout / "trimtok_fast"
    # rglob does not follow the symlink; the kernels' folder is flat.
    wanted = {path for path in [*package.rglob("*"), *package.glob("kernels/*")] if path.is_file()}
    missing = {path.relative_to(checkout).as_posix() for path in wanted} - wheel_names
    assert not missing, f"add the package or its data to setup.py: {sorted(missing)}"
    assert "trimtok_fast/py.typed" in wheel_names


def test_wheel_has_no_top_level_name_but_ours(wheel_names: set[str]) -> None:
    top_level = {name.split("/")[0] for name in wheel_names}
    assert {name for name in top_level if not name.endswith(".dist-info")} == {"trimtok_fast"}


def test_kernels_is_not_a_regular_package(wheel_names: set[str]) -> None:
    assert "trimtok_fast/kernels/__init__.py" not in wheel_names
    assert not (ROOT / "kernels" / "__init__.py").exists()
    assert (ROOT / "trimtok_fast" / "kernels").is_symlink()
    assert os.readlink(ROOT / "trimtok_fast" / "kernels") == os.path.join("..", "kernels")


def test_metadata_has_the_facts_of_their_one_source(metadata: Message, unpacked_wheel: Path) -> None:
    (dist_info,) = unpacked_wheel.glob("*.dist-info")
    source = (ROOT / "trimtok_fast" / "__init__.py").read_text(encoding="utf-8")
    assert f'__version__ = "{metadata["Version"]}"' in source.splitlines()
    assert metadata["License-Expression"] == "Apache-2.0"
    assert (dist_info / "licenses" / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    assert metadata.get_payload().strip() == (ROOT / "README.md").read_text(encoding="utf-8").strip()
    assert "trimtok = trimtok_fast.cli:main" in (dist_info / "entry_points.txt").read_text().splitlines()
    assert set(metadata.get_all("Provides-Extra")) == {"triton", "hf", "demo", "bench", "test", "dev"}


def test_core_requirements_are_numpy_and_torch(metadata: Message) -> None:
    core = [line for line in metadata.get_all("Requires-Dist") if "extra ==" not in line]
    assert sorted(re.split(r"[^\w-]", line)[0] for line in core) == ["numpy", "torch"]


def test_constraints_pin_every_requirement(metadata: Message) -> None:
    # One left out could ask for a newer torch, and the environment would no longer be the one that CI runs.
    required = {re.split(r"[^\w.-]", line)[0] for line in metadata.get_all("Requires-Dist")}
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert set(re.findall(r"^([\w.-]+)==\d", constraints, flags=re.MULTILINE)) == required


def test_readme_names_the_two_commands() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "make demo" in readme and "make test" in readme


# The import


@pytest.mark.parametrize("way", ["uninstalled", "editable", "wheel"])
def test_works_and_leaves_the_name_kernels_alone(
    way: str, checkout: Path, unpacked_wheel: Path, tmp_path: Path
) -> None:
    prelude, path, origin = "", checkout, checkout
    if way == "editable":
        # An editable wheel is a .pth file that leads to the checkout; addsitedir reads it as python would.
        path = tmp_path / "site-packages"
        with zipfile.ZipFile(build("build_editable", checkout, tmp_path / "wheel")) as archive:
            archive.extractall(path)
        prelude = f"import site; site.addsitedir({str(path)!r})"
    elif way == "wheel":
        path = origin = unpacked_wheel
    code = f"""
        {prelude}
        from importlib.util import find_spec
        import torch
        import trimtok_fast as tt
        print(tt.__file__)
        print(*find_spec("trimtok_fast.kernels").submodule_search_locations)
        found = find_spec("kernels")
        print(bool(found) and {str(origin / "kernels")!r} in found.submodule_search_locations)
        tokens = torch.eye(4)
        print(tt.prune(tokens, [0, 2, 4], config=tt.PruneConfig(keep_tokens=2)).gather(tokens).shape)
    """
    package, kernels, in_sight, pruned = run_python(code, path, cwd=tmp_path).splitlines()
    assert Path(package) == origin / "trimtok_fast" / "__init__.py"
    assert Path(kernels) == origin / "trimtok_fast" / "kernels"
    assert in_sight == str(
        way == "uninstalled"
    )  # from a checkout our folder is; an installation has no such name
    assert pruned == "torch.Size([2, 4])"


def test_import_loads_prints_and_patches_nothing(tmp_path: Path) -> None:
    code = """
        import builtins, sys, warnings
        import torch

        def functions():
            nn = torch.nn
            owners = [builtins, sys, warnings, torch, torch.Tensor, torch.linalg, nn.functional, nn.Module]
            return {
                f"{owner.__name__}.{name}": value
                for owner in owners for name, value in vars(owner).items() if callable(value)
            }

        def settings():
            return (
                list(sys.meta_path), list(sys.path), list(sys.path_hooks), list(warnings.filters),
                torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled(),
                torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision(),
            )

        functions_before, settings_before = functions(), settings()
        import trimtok_fast
        functions_after = functions()
        patched = [name for name, value in functions_before.items() if functions_after.get(name) is not value]
        assert not patched, patched
        assert settings() == settings_before
        loaded = {"triton", "transformers", "rich", "jinja2", "skimage", "sklearn", "PIL"} & set(sys.modules)
        assert not loaded, loaded
    """
    assert run_python(code, ROOT, cwd=tmp_path) == ""


# The name `kernels`


def make_hugging_face_kernels(target: Path) -> Path:
    """A stand-in for Hugging Face's library as transformers sees it, of a version that it accepts."""
    (target / "kernels").mkdir(parents=True)
    # Whatever is taken from it can be called, and then decorates nothing.
    (target / "kernels" / "__init__.py").write_text(
        "def __getattr__(name):\n    return lambda *arguments: lambda decorated: decorated\n"
    )
    # Read from the source, because transformers takes seconds to import.
    source = Path(importlib.util.find_spec("transformers").origin).parent / "utils" / "import_utils.py"
    accepted = re.search(
        r'^KERNELS_MIN_VERSION = "(.+)"$', source.read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    version = accepted[1] if accepted else "1.0.0"
    dist_info = target / f"kernels-{version}.dist-info"
    dist_info.mkdir()
    (dist_info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: kernels\nVersion: {version}\n")
    return target


def test_transformers_sees_no_kernels_library_in_our_folder() -> None:
    """Every other test of the patch runs like this: from the repository's root, where `kernels/` is."""
    utils = pytest.importorskip("transformers.utils")
    if PathFinder.find_spec("kernels", REQUIREMENTS) is not None:
        pytest.skip("Hugging Face's kernels library is installed here")
    assert PathFinder.find_spec("kernels", [str(ROOT)]).origin is None
    assert not utils.is_kernels_available()


def test_transformers_takes_the_kernels_library_and_not_our_folder(tmp_path: Path) -> None:
    pytest.importorskip("transformers.utils")
    code = """
        import kernels
        from transformers import LlamaForCausalLM
        from transformers.utils import is_kernels_available
        import trimtok_fast.kernels
        print(kernels.__file__)
        print(is_kernels_available(), LlamaForCausalLM.__name__)
        print(*trimtok_fast.kernels.__path__)
    """
    # With -c a module is looked for in the working directory first: there, `kernels` is our folder.
    path = make_hugging_face_kernels(tmp_path / "site")
    origin, llama, ours = run_python(code, path, cwd=ROOT).splitlines()[-3:]
    assert origin == str(path / "kernels" / "__init__.py")
    assert llama == "True LlamaForCausalLM"
    assert Path(ours) == ROOT / "trimtok_fast" / "kernels"
