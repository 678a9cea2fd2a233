"""The demo: its pictures, its classifier, its comparison, its two files, and what it says to bad input."""

import io
import re
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

pytest.importorskip("efficientnet_lite_pytorch", reason="the extra `demo` is not installed")
pytest.importorskip("rich", reason="the extra `demo` is not installed")

from PIL import Image
from rich.progress import Progress

from trimtok_fast.cli import main
from trimtok_fast.config import PruneConfig
from trimtok_fast.demo import METHODS, comparison
from trimtok_fast.demo.classifier import TOKENS_PER_PICTURE, WIDTH, Classifier, class_names, find_class
from trimtok_fast.demo.facts import legend
from trimtok_fast.demo.overlay import KEPT, STAGES, overlay
from trimtok_fast.demo.pictures import Picture, bundled_pictures, open_picture, pictures_in
from trimtok_fast.demo.run import Options, run_demo
from trimtok_fast.demo.sheet import ROW_HEIGHT, arrange, draw_sheet
from trimtok_fast.demo.sheet import WIDTH as SHEET_WIDTH
from trimtok_fast.errors import InvalidInputError

CATS = {"tabby", "tiger cat", "Persian cat", "Siamese cat", "Egyptian cat", "lynx"}
ODD_NAME = "<b>cup & [red] saucer.png"


@pytest.fixture(scope="module")
def bundled():
    return {picture.name: picture for picture in bundled_pictures()}


@pytest.fixture(scope="module")
def classifier():
    return Classifier()


@pytest.fixture(scope="module")
def chelsea(bundled, classifier):
    return classifier.tokens(bundled["chelsea"].image)


@pytest.fixture(scope="module")
def demo(tmp_path_factory, bundled):
    """The whole command on three pictures of three sizes and a broken one: its folder and what it printed."""
    folder = tmp_path_factory.mktemp("pictures")
    bundled["chelsea"].image.save(folder / "cat.webp")
    bundled["coffee"].image.resize((300, 200)).save(folder / ODD_NAME)
    bundled["rocket"].image.save(folder / "rocket.JPG", "JPEG")
    (folder / "broken.png").write_bytes(b"no picture at all")
    (folder / "notes.txt").write_text("left alone")
    out = folder / "made" / "here"
    printed, complained = io.StringIO(), io.StringIO()
    with redirect_stdout(printed), redirect_stderr(complained):
        status = main(
            ["demo", "--images", str(folder), "--query", "egyptian CAT", "--keep", "60", "--out", str(out)]
        )
    assert status == 0, complained.getvalue()
    return out, printed.getvalue(), complained.getvalue()


@pytest.fixture(scope="module")
def result(bundled):
    """A cup and two equal chessboards, a tenth of the tokens, with the query."""
    pictures = [bundled[name] for name in ("coffee", "chessboard GRAY", "chessboard RGB")]
    with Progress(disable=True) as progress:
        return run_demo(pictures, Options(query="espresso", config=PruneConfig(keep_ratio=0.1)), progress)


def run(*arguments, capsys):
    status = main(["demo", *map(str, arguments)])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


# Pictures


def test_there_are_28_bundled_pictures_with_names_of_their_own(bundled):
    assert len(bundled) == 28
    assert all(picture.image.mode == "RGB" for picture in bundled.values())


def test_transparency_is_laid_over_white(tmp_path):
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert open_picture(tmp_path / "clear.png").getpixel((0, 0)) == (255, 255, 255)


def test_16_bit_pictures_are_scaled_and_not_clipped(tmp_path):
    Image.fromarray(np.full((4, 4), 200 * 256 + 3, dtype=np.uint16)).save(tmp_path / "deep.png")
    assert open_picture(tmp_path / "deep.png").getpixel((0, 0)) == (199, 199, 199)


def test_photographs_are_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by a quarter
    Image.new("RGB", (30, 20)).save(tmp_path / "turned.jpg", exif=exif)
    assert open_picture(tmp_path / "turned.jpg").size == (20, 30)


def test_what_cannot_be_read_is_named_and_skipped(demo):
    _, _, complained = demo
    assert complained.splitlines() == ["trimtok: broken.png is skipped: no picture"]


def test_hidden_files_and_other_kinds_are_left_alone(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "b.png")
    Image.new("RGB", (4, 4)).save(tmp_path / "a.bmp")
    (tmp_path / "._b.png").write_bytes(b"junk")
    (tmp_path / "a.txt").write_text("text")
    assert [picture.name for picture in pictures_in(tmp_path, pytest.fail)] == ["a.bmp", "b.png"]


# The classifier


def test_there_are_1000_distinct_class_names_in_the_usual_order():
    names = class_names()
    assert len({name.lower() for name in names}) == len(names) == 1000
    assert [names[label] for label in (0, 281, 657, 967, 999)] == [
        "tench",
        "tabby",
        "missile",
        "espresso",
        "toilet tissue",
    ]


def test_tokens_are_one_row_for_each_patch(chelsea):
    assert chelsea.shape == (TOKENS_PER_PICTURE, WIDTH)
    assert chelsea.dtype == torch.float32


def test_tokens_keep_the_order_of_the_patches(bundled, classifier):
    corner = Image.new("RGB", (448, 448), "grey")
    corner.paste(bundled["coffee"].image.resize((224, 224)), (224, 0))
    votes = classifier.tokens(corner) @ classifier.query(find_class("espresso"))[0]
    row, column = divmod(int(votes.argmax()), 14)
    assert row < 7 <= column


@pytest.mark.parametrize(
    ("name", "expected"), [("chelsea", CATS), ("coffee", {"espresso"}), ("camera", {"tripod"})]
)
def test_the_classifier_knows_what_it_sees(name, expected, bundled, classifier):
    pooled = classifier.tokens(bundled[name].image).mean(0)
    assert class_names()[int(classifier.log_probabilities(pooled).argmax())] in expected


def test_a_query_points_at_the_tokens_of_its_class(bundled, classifier, chelsea):
    coffee = classifier.tokens(bundled["coffee"].image)
    query = classifier.query(find_class("espresso"))[0]
    assert (coffee @ query).max() > (chelsea @ query).max()


def test_classes_are_found_in_any_case_and_spacing():
    assert find_class("  EGYPTIAN   cat ") == 285


@pytest.mark.parametrize(
    ("name", "suggestion"), [("expreso", "'espresso'"), ("cat", "'Egyptian cat'"), ("##", "'espresso'")]
)
def test_an_unknown_class_is_answered_with_close_ones(name, suggestion):
    with pytest.raises(InvalidInputError, match=suggestion):
        find_class(name)


# The comparison


def test_keeping_all_loses_nothing(chelsea, classifier):
    score = comparison.score(chelsea, torch.arange(TOKENS_PER_PICTURE), classifier, label=285)
    assert score.mean_distance == pytest.approx(0, abs=1e-6)
    assert score.largest_distance == pytest.approx(0, abs=1e-6)
    assert score.divergence == pytest.approx(0, abs=1e-6)
    assert (score.same_answer, score.recall, score.emptied) == (1, 1.0, 0)


def test_scores_follow_their_definitions(chelsea, classifier):
    tokens = torch.cat([chelsea, chelsea.flip(0) * 2])
    kept = torch.arange(0, TOKENS_PER_PICTURE, 7)
    unit = torch.nn.functional.normalize(tokens.double(), dim=1)
    distance = torch.tensor([min(1 - float(row @ unit[other]) for other in kept) for row in unit])
    score = comparison.score(tokens, kept, classifier, label=285)
    needles = (tokens @ classifier.query(285)[0]).topk(comparison.NEEDLES).indices
    assert score.mean_distance == pytest.approx(distance.mean().item(), abs=1e-5)
    assert score.largest_distance == pytest.approx(distance.max().item(), abs=1e-5)
    assert score.recall == pytest.approx(sum(int(needle) in kept for needle in needles) / comparison.NEEDLES)
    assert score.emptied == 1
    assert score.divergence > 0


def test_every_method_keeps_the_same_number_and_the_stages_agree_with_the_plan(result):
    assert set(METHODS) < set(result.selections)
    assert {sum(selection.kept) for selection in result.selections.values()} == {result.budget}
    counts = [int((result.shown.stage >= code).sum()) for code in (1, 2, 3)]
    assert counts == [int(result.pruned.plan.survivors), int(result.pruned.plan.pool), result.budget]
    coffee, *boards = result.shown.kept
    assert coffee > sum(boards), "two equal chessboards are worth less than a cup of coffee"
    assert set(result.seconds) == {"statistics", "budgets", "stage1", "stage2", "pareto", "prune", "tokens"}


# What it writes and prints


class _Resources(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.addresses = set(), []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.addresses += [
            value for name, value in attrs if name in ("src", "href", "srcset", "data", "action")
        ]


def test_the_page_needs_no_other_file(demo):
    text = (demo[0] / "report.html").read_text(encoding="utf-8")
    resources = _Resources()
    resources.feed(text)
    assert not resources.tags & {"script", "link", "iframe", "object"}
    assert len(resources.addresses) == 3
    assert all(address.startswith("data:image/") for address in resources.addresses)
    assert not re.search(r"https?:|@import|url\(|//", re.sub(r"data:image/[^\"]*", "", text))


def test_the_page_names_every_picture_and_escapes_it(demo):
    text = (demo[0] / "report.html").read_text(encoding="utf-8")
    assert "&lt;b&gt;cup &amp; [red] saucer.png" in text
    assert "<b>cup" not in text
    assert all(name in text for name in ("cat.webp", "rocket.JPG", "Egyptian cat"))


def test_the_page_can_switch_between_all_methods(demo):
    text = (demo[0] / "report.html").read_text(encoding="utf-8")
    assert all(f'id="show-{method}"' in text for method in (*METHODS, "no-query", "pictures"))
    assert text.count("checked>") == 1


def test_the_sheet_is_as_large_as_its_layout(demo, bundled):
    aspects = [
        bundled[name].image.width / bundled[name].image.height for name in ("coffee", "chelsea", "rocket")
    ]
    with Image.open(demo[0] / "kept.png") as sheet:
        assert sheet.size == (SHEET_WIDTH, arrange(aspects)[1])


def test_the_output_is_plain_and_fits_80_columns_when_piped(demo):
    _, printed, _ = demo
    printed = re.sub(r"^wrote .*$", "", printed, flags=re.MULTILINE)
    assert "\033" not in printed
    assert max(map(len, printed.splitlines())) <= 80
    assert "60 of 588 visual tokens kept (10.2%): TrimTokenator-LC, query “Egyptian cat”" in printed
    for word in (
        "D_intra",
        "D_inter",
        "stage split w",
        "survivors",
        "pool",
        "fronts",
        "statistics",
        "DivPrune",
    ):
        assert word in printed


def test_the_printed_counts_add_up(demo):
    _, printed, _ = demo
    rows = re.findall(r"^  (?:cat|rocket|<b>)\S*.* 196 +0\.\d+ +(\d+) +(\d+) ", printed, flags=re.MULTILINE)
    assert len(rows) == 3
    assert sum(int(kept) for _, kept in rows) == 60
    survivors = re.search(r"survivors +(\d+)", printed)
    assert survivors and sum(int(budget) for budget, _ in rows) == int(survivors[1])


def test_kept_patches_are_clear_and_dropped_ones_shaded_by_their_stage():
    stages = np.array([0, 1, 2, KEPT] * 49, dtype=np.int8)
    pixels = np.asarray(overlay(stages)).reshape(-1, 4)
    assert (pixels[3::4, 3] == 0).all()
    for stage in STAGES:
        assert (pixels[stage.code :: 4, :3] == stage.colour).all()
        assert (pixels[stage.code :: 4, 3] > 128).all()


def test_the_sheet_leaves_kept_patches_as_they_are():
    stages = np.zeros((1, TOKENS_PER_PICTURE), dtype=np.int8)
    stages[0, 0] = KEPT
    white = Picture("white", Image.new("RGB", (140, 140), "white"))
    sheet = draw_sheet([white], stages, STAGES, "title", "subtitle")
    [tile], _ = arrange([1.0])
    half = tile.width // 28
    assert sheet.getpixel((tile.left + half, tile.top + half)) == (255, 255, 255)
    assert max(sheet.getpixel((tile.left + 3 * half, tile.top + half))) < 128


def test_kept_patches_of_a_dark_picture_are_outlined():
    stages = np.zeros((1, TOKENS_PER_PICTURE), dtype=np.int8)
    stages[0, 0] = KEPT
    black = Picture("black", Image.new("RGB", (140, 140)))
    sheet = draw_sheet([black], stages, STAGES, "title", "subtitle")
    [tile], _ = arrange([1.0])
    half = tile.width // 28
    assert min(sheet.getpixel((tile.left, tile.top + half))) > 128
    assert max(sheet.getpixel((tile.left + half, tile.top + half))) == 0
    assert max(sheet.getpixel((tile.left + tile.width - 1, tile.top + half))) < 64


@pytest.mark.parametrize("aspects", [[1.0], [0.01, 100.0], [1.5] * 28, [0.7, 1.0, 2.4] * 20])
def test_tiles_stay_on_the_sheet_in_order_without_overlap(aspects):
    tiles, height = arrange(aspects)
    assert [tile.index for tile in tiles] == list(range(len(aspects)))
    assert all(tile.left >= 0 and tile.left + tile.width <= SHEET_WIDTH for tile in tiles)
    assert max(tile.top + tile.height for tile in tiles) < height
    assert max(tile.height for tile in tiles) <= 1.5 * ROW_HEIGHT
    for tile, following in zip(tiles, tiles[1:], strict=False):
        assert following.top > tile.top + tile.height or following.left > tile.left + tile.width


def test_without_a_query_nothing_speaks_of_one(tmp_path, bundled, capsys):
    bundled["coffee"].image.save(tmp_path / "cup.png")
    status, printed, _ = run("--images", tmp_path, "--out", tmp_path, "--method", "uniform", capsys=capsys)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert status == 0
    assert "best 20" not in printed + page
    assert "no fronts" in printed
    assert "undefined" in printed, "one picture has no variation"
    assert 'id="show-no-query"' not in page


def test_legends_name_the_stages_that_a_method_has(result):
    assert [len(legend(result, method)) for method in result.selections] == [3, 2, 1, 1, 1, 1, 1]
    assert "Pareto" in legend(result, "trimtokenator-lc")[2].name
    assert not any("Pareto" in stage.name for stage in legend(result, "no-query"))


# Bad input


@pytest.mark.parametrize(
    ("arguments", "helpful"),
    [
        (["--query", "expreso"], "Close to it: 'espresso'"),
        (["--keep", "0"], "a share in (0, 1]"),
        (["--keep", "1.5"], "a whole number of tokens"),
        (["--keep", "nan"], "got 'nan'"),
        (["--keep", "lots"], "got 'lots'"),
        (["--keep", "27"], "at least 28 tokens"),
        (["--images", "/no/such/folder"], "does not exist"),
        (["--images", __file__], "a folder of pictures"),
        (["--method", "fastv"], "'divprune'"),
        (["--backend", "cuda"], "'torch'"),
        (["--seed", "-1"], "from 0 to"),
        (["--out", __file__], "a folder to write to"),
        (["--query", "espresso", "--no-query"], "not allowed with"),
        (["--qeury", "espresso"], "--qeury"),
    ],
    ids=lambda value: " ".join(value)[:24] if isinstance(value, list) else "",
)
def test_bad_input_is_one_helpful_line_and_status_2(arguments, helpful, tmp_path, capsys):
    status, printed, complained = run("--out", tmp_path, *arguments, capsys=capsys)
    assert (status, printed) == (2, "")
    assert len(complained.splitlines()) == 1
    assert complained.startswith("trimtok")
    assert helpful in complained


@pytest.mark.parametrize("broken", [[], ["a.png", "b.jpg"]], ids=["empty", "all broken"])
def test_a_folder_without_a_readable_picture_is_refused(broken, tmp_path, capsys):
    for name in broken:
        (tmp_path / name).write_bytes(b"junk")
    status, _, complained = run("--images", tmp_path, "--out", tmp_path, capsys=capsys)
    assert status == 2
    assert len(complained.splitlines()) == len(broken) + 1
    assert "Choose another folder" in complained.splitlines()[-1]


def test_missing_packages_are_named_with_the_remedy(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "rich.console", None)
    status, _, complained = run("--out", tmp_path, capsys=capsys)
    assert status == 2
    assert "rich.console" in complained
    assert "pip install 'trimtok_fast[demo]'" in complained


def test_no_command_and_help_and_version(capsys):
    assert main([]) == 2
    assert "COMMAND" in capsys.readouterr().err
    assert main(["demo", "--help"]) == 0
    assert "examples:" in capsys.readouterr().out
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("trimtok_fast ")


def test_python_m_is_the_same_door():
    done = subprocess.run(
        [sys.executable, "-m", "trimtok_fast", "demo", "--keep", "2.5"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("trimtok demo: argument --keep: wanted a share")
