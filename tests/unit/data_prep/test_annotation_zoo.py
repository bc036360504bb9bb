"""Malformed annotations: each is one rejection with its reason, and costs no other sample."""

from __future__ import annotations

import json
import pickle
import struct
import tarfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from data_prep.config import DatasetConfig, PrepareConfig, SourceConfig
from data_prep.errors import DataError
from data_prep.plan import plan_dataset
from data_prep.quarantine import Reason
from tests.support.raw_data import jpeg, sources, write_raw, write_refs
from tests.support.raw_tables import (
    TSV_ROWS,
    read,
    table_source,
    tar_source,
    tsv_line,
    tsv_source,
    vqa_members,
    write_table,
    write_tar,
)

HUGE = 10**400
DEEP: Any = "x"
for _ in range(300):
    DEEP = [DEEP]


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    write_raw(tmp_path / "raw")
    return tmp_path / "raw"


def _caption(**changes: Any) -> tuple[str, Any]:
    row = {"id": 99, "image_id": 1, "caption": "x", **changes}
    return "captions.json", lambda c: c["annotations"].append(row)


def _box(bbox: Any, **changes: Any) -> tuple[str, Any]:
    row = {"id": 990, "image_id": 1, "category_id": 1, "bbox": bbox, **changes}
    return "instances.json", lambda c: c["annotations"].append(row)


def _question(**changes: Any) -> tuple[str, Any]:
    return "questions.json", lambda c: c["questions"][0].update(changes)


def _answer(change: Callable[[Any], Any]) -> tuple[str, Any]:
    return "answers.json", lambda c: change(c["annotations"][0])


JSON_ZOO: list[tuple[str, tuple[str, Any], list[Reason]]] = [
    ("coco_captions", _caption(caption=None), [Reason.MALFORMED_ANNOTATION]),
    ("coco_captions", _caption(caption=["x"]), [Reason.MALFORMED_ANNOTATION]),
    ("coco_captions", _caption(caption=DEEP), [Reason.MALFORMED_ANNOTATION]),
    ("coco_captions", _caption(caption="\ud800"), [Reason.BAD_TEXT]),
    ("coco_captions", _caption(image_id=77), [Reason.UNKNOWN_IMAGE]),
    ("coco_captions", _caption(image_id=True), [Reason.UNKNOWN_IMAGE]),
    ("coco_captions", _caption(image_id=HUGE), [Reason.UNKNOWN_IMAGE]),
    ("coco_captions", _caption(image_id=[1]), [Reason.UNKNOWN_IMAGE]),
    ("coco_captions", _caption(image_id="1"), [Reason.UNKNOWN_IMAGE]),
    ("coco_captions", ("captions.json", lambda c: c["annotations"].append(None)),
     [Reason.UNKNOWN_IMAGE]),
    ("coco_captions", ("captions.json", lambda c: c["images"][0].update(file_name=5)),
     [Reason.UNKNOWN_IMAGE]),
    ("coco_instances", _box([1, 2, 3]), [Reason.BAD_BOX]),
    ("coco_instances", _box([1, 2, 0, 4]), [Reason.BAD_BOX]),
    ("coco_instances", _box([1, 2, -3, 4]), [Reason.BAD_BOX]),
    ("coco_instances", _box([1, 2, float("nan"), 4]), [Reason.BAD_BOX]),
    ("coco_instances", _box([1, 2, float("inf"), 4]), [Reason.BAD_BOX]),
    ("coco_instances", _box([1, 2, HUGE, 4]), [Reason.BAD_BOX]),
    ("coco_instances", _box([1e308, 2, 1e308, 4]), [Reason.BAD_BOX]),
    ("coco_instances", _box([1, 2, True, 4]), [Reason.BAD_BOX]),
    ("coco_instances", _box(["1", "2", "3", "4"]), [Reason.BAD_BOX]),
    ("coco_instances", _box("1,2,3,4"), [Reason.MALFORMED_ANNOTATION]),
    ("coco_instances", _box([1, 2, 3, 4], category_id=9), [Reason.BAD_LABEL]),
    ("coco_instances", _box([1, 2, 3, 4], category_id=HUGE), [Reason.BAD_LABEL]),
    ("vqav2", _question(question=7), [Reason.MALFORMED_ANNOTATION]),
    ("vqav2", _question(question="\udfff"), [Reason.BAD_TEXT]),
    ("vqav2", _question(image_id=DEEP), [Reason.MALFORMED_ANNOTATION]),
    ("vqav2", _question(image_id="../1"), [Reason.MALFORMED_ANNOTATION]),
    # Its answers are then asked for by nobody.
    ("vqav2", _question(question_id=HUGE),
     [Reason.MALFORMED_ANNOTATION, Reason.UNKNOWN_QUESTION]),
    ("vqav2", _answer(lambda a: a["answers"].append({"answer": 3})),
     [Reason.MALFORMED_ANNOTATION]),
    ("vqav2", _answer(lambda a: a.update(answers={})), [Reason.MALFORMED_ANNOTATION]),
    ("vqav2", _answer(lambda a: a.pop("question_id")),
     [Reason.MALFORMED_ANNOTATION, Reason.NO_ANSWERS]),
    ("vqav2", ("answers.json", lambda c: c["annotations"].append(c["annotations"][0])),
     [Reason.MALFORMED_ANNOTATION]),
]  # fmt: skip


def check_balance(config: SourceConfig, folder: Path, reasons: list[Reason]) -> int:
    """The plan counts what the reader rejects, and nothing gets lost; returns the samples."""
    prepare = PrepareConfig(
        output_dir=str(folder), datasets={"zoo": DatasetConfig(sources=[config])}
    )
    with plan_dataset(prepare, "zoo") as plan:
        assert sorted(r.reason for r in plan.rejections()) == sorted(reasons)
        assert plan.count_in == plan.records + len(reasons)
        return plan.records


@pytest.mark.parametrize(("reader", "change", "reasons"), JSON_ZOO)
def test_json(
    raw: Path, tmp_path: Path, reader: str, change: tuple[str, Any], reasons: list[Reason]
) -> None:
    name, edit = change
    content = json.loads((raw / name).read_text())
    edit(content)
    (raw / name).write_text(json.dumps(content))
    kept = check_balance(sources(raw)[reader], tmp_path / "out", reasons)
    # The spoilt row belongs to one image; the samples of the other images stand.
    assert kept in (5, 6)


TSV_ZOO: list[tuple[str, bytes, Reason]] = [
    ("caption", b"one\ttwo", Reason.MALFORMED_ANNOTATION),
    ("caption", b"\t1\tx\t\tAAAA", Reason.MALFORMED_ANNOTATION),
    ("caption", b"1\t1\t\xff\t\tAAAA", Reason.BAD_TEXT),
    ("caption", b"1\t1\tx\t\t", Reason.MISSING_IMAGE),
    ("vqa", b"1\t1\tq?\tyes\t\tAAAA", Reason.MALFORMED_ANNOTATION),
    ("vqa", b"1\t1\tq?\t0.5|!+yes\t\tAAAA", Reason.MALFORMED_ANNOTATION),
    ("vqa", b"1\t1\tq?\tnan|!+yes\t\tAAAA", Reason.MALFORMED_ANNOTATION),
    ("vqa", b"1\t1\tq?\t0.3|!+\t\tAAAA", Reason.MALFORMED_ANNOTATION),
    ("grounding", b"1\t1\tx\t1,2,3\tAAAA", Reason.BAD_BOX),
    ("grounding", b"1\t1\tx\t1,2,x,4\tAAAA", Reason.BAD_BOX),
    ("grounding", b"1\t1\tx\t3,2,1,4\tAAAA", Reason.BAD_BOX),
    ("grounding", b"1\t1\tx\t1,2,inf,4\tAAAA", Reason.BAD_BOX),
    ("entailment", b"1\t1\tAAAA\thyp\tprem\tperhaps", Reason.BAD_LABEL),
]


@pytest.mark.parametrize(("task", "line", "reason"), TSV_ZOO)
def test_tsv(tmp_path: Path, task: str, line: bytes, reason: Reason) -> None:
    path = tmp_path / "ofa.tsv"
    path.write_bytes(line + b"\n" + tsv_line(TSV_ROWS[task]))
    assert check_balance(tsv_source(path, task), tmp_path / "out", [reason]) == 1


TABLE_ZOO: list[tuple[dict[str, Any], Reason]] = [
    ({"uid": None}, Reason.MALFORMED_ANNOTATION),
    ({"uid": ""}, Reason.MALFORMED_ANNOTATION),
    ({"text": None}, Reason.MALFORMED_ANNOTATION),
    ({"image": None}, Reason.MISSING_IMAGE),
    ({"image": b""}, Reason.MISSING_IMAGE),
    ({"box": None}, Reason.BAD_BOX),
    ({"box": [1.0, 2.0, 3.0]}, Reason.BAD_BOX),
    ({"box": [1.0, 2.0, float("nan"), 4.0]}, Reason.BAD_BOX),
    ({"box": [5.0, 2.0, 3.0, 4.0]}, Reason.BAD_BOX),
]


@pytest.mark.parametrize(("changes", "reason"), TABLE_ZOO)
def test_table(tmp_path: Path, changes: dict[str, Any], reason: Reason) -> None:
    good = {"uid": "a", "image": jpeg(1), "text": "x", "box": [1.0, 2.0, 3.0, 4.0]}
    kinds = (pa.string(), pa.binary(), pa.string(), pa.list_(pa.float64()))
    schema = pa.schema(list(zip(good, kinds, strict=True)))
    write_table(tmp_path / "t.parquet", [good, {**good, "uid": "b", **changes}], schema)
    config = table_source(tmp_path / "t.parquet", "grounding")
    assert check_balance(config, tmp_path / "out", [reason]) == 1


def test_a_text_column_that_is_no_unicode(tmp_path: Path) -> None:
    broken = pa.Array.from_buffers(
        pa.string(), 2, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0"), pa.py_buffer(b"\xffa")]
    )
    names = pa.array(["a.jpg", "b.jpg"])
    table = pa.table({"uid": pa.array([1, 2]), "image": names, "references": broken})
    with pa.ipc.new_file(tmp_path / "t.feather", table.schema) as sink:
        sink.write_table(table)
    config = table_source(tmp_path / "t.feather", "caption", images=str(tmp_path))
    assert check_balance(config, tmp_path / "out", [Reason.BAD_TEXT]) == 1


def _special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


TAR_ZOO: list[tuple[list[Any], Reason]] = [
    ([("../x.jpg", jpeg(1))], Reason.BAD_IMAGE_NAME),
    ([("/etc/cron.d/x", b"* * * * *")], Reason.BAD_IMAGE_NAME),
    ([("a/../../x.json", b"{}")], Reason.BAD_IMAGE_NAME),
    ([("a\\..\\x.json", b"{}")], Reason.BAD_IMAGE_NAME),
    (
        [_special("5.jpg", tarfile.SYMTYPE, "/etc/passwd"), vqa_members("5")[1]],
        Reason.BAD_IMAGE_NAME,
    ),
    ([_special("5.jpg", tarfile.LNKTYPE, "1.jpg"), vqa_members("5")[1]], Reason.BAD_IMAGE_NAME),
    ([_special("5.jpg", tarfile.CHRTYPE), vqa_members("5")[1]], Reason.BAD_IMAGE_NAME),
    ([_special("5.jpg", tarfile.FIFOTYPE), vqa_members("5")[1]], Reason.BAD_IMAGE_NAME),
    ([vqa_members("5")[1]], Reason.MISSING_IMAGE),
    ([vqa_members("5")[0]], Reason.MALFORMED_ANNOTATION),
    ([("5.jpg", jpeg(5)), ("5.json", b"{")], Reason.MALFORMED_ANNOTATION),
    ([("5.jpg", jpeg(5)), ("5.json", b"[]")], Reason.MALFORMED_ANNOTATION),
    ([("5.jpg", jpeg(5)), ("5.json", b"[" * 100_000)], Reason.MALFORMED_ANNOTATION),
    ([("5.jpg", jpeg(5)), ("5.json", b'{"uid": "\xff"}')], Reason.BAD_TEXT),
    ([("5.jpg", jpeg(5)), ("5.jpg", jpeg(6)), vqa_members("5")[1]], Reason.MALFORMED_ANNOTATION),
    (vqa_members("5", text=None), Reason.MALFORMED_ANNOTATION),
    (vqa_members("5", answers=[]), Reason.NO_ANSWERS),
    (vqa_members("5", answers=[{"answer": 5}]), Reason.MALFORMED_ANNOTATION),
    (vqa_members("5", text="\ud800"), Reason.BAD_TEXT),
    ([("README", b"hello")], Reason.MISSING_IMAGE),
]


@pytest.mark.parametrize(("members", "reason"), TAR_ZOO)
def test_webdataset(tmp_path: Path, members: list[Any], reason: Reason) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    good = [*vqa_members("1"), *vqa_members("9")]
    write_tar(folder / "w.tar", [*good[:2], *members, *good[2:]])
    config = tar_source(folder / "w.tar", "vqa")
    assert check_balance(config, tmp_path / "out", [reason]) == 2
    # Nothing was extracted, wherever its name leads.
    assert [path.name for path in folder.iterdir()] == ["w.tar"]
    assert not (tmp_path / "x.jpg").exists()


@pytest.mark.parametrize(
    "record", [{}, {"schema_version": 1}, {"schema_version": 99, "image": None}, {"uid": 5}]
)
def test_a_json_member_that_is_no_sample_of_ours(tmp_path: Path, record: dict[str, Any]) -> None:
    write_tar(tmp_path / "w.tar", [("1.jpg", jpeg(1)), ("1.json", json.dumps(record).encode())])
    records, rejections = read(tar_source(tmp_path / "w.tar"))
    assert not records
    assert [r.reason for r in rejections] == [Reason.MALFORMED_ANNOTATION]


def test_references_that_are_endless_or_out_of_range(raw: Path, tmp_path: Path) -> None:
    endless: list[Any] = []
    endless.append(endless)
    laughs: Any = ["ha"]
    for _ in range(60):
        laughs = [laughs, laughs]
    good = {"split": "train", "image_id": 1, "ann_id": 10, "ref_id": 1}
    refs = [
        {**good, "sentences": endless},
        {**good, "sentences": [{"sent": laughs, "sent_id": 2}]},
        {**good, "ref_id": HUGE * HUGE**20, "image_id": HUGE, "sentences": [{"sent": "x"}]},
        {**good, "ann_id": True, "sentences": [{"sent": "x", "sent_id": 3}]},
        {**good, "ref_id": 7, "sentences": [{"sent": "x", "sent_id": 4}]},
    ]
    write_refs(raw, refs)
    reasons = [Reason.MALFORMED_ANNOTATION] * 4
    assert check_balance(sources(raw)["refer"], tmp_path / "out", reasons) == 1


@pytest.mark.parametrize("call", ["os.system", "builtins.eval", "subprocess.Popen"])
def test_a_pickle_that_asks_for_code_is_refused(raw: Path, call: str) -> None:
    module, _, name = call.rpartition(".")
    marker = raw / "ran"
    path = raw / "refs(test).p"
    path.write_bytes(f"c{module}\n{name}\n(S'touch {marker}'\ntR.".encode())
    with pytest.raises(DataError, match=f"asks for {call}"):
        read(sources(raw)["refer"])
    assert not marker.exists()
    assert pickle.dumps(1)


def _header(content: bytes, number: int) -> int:
    """Where the header of an archive's member begins."""
    with tarfile.open(fileobj=BytesIO(content)) as tar:
        return tar.getmembers()[number].offset


@pytest.mark.parametrize(
    "spoil",
    [
        lambda content: content[:700],
        lambda content: content[: _header(content, 1) + 100],
        lambda content: content[: _header(content, 2)],
        lambda content: content[: _header(content, 2)] + b"\1" + content[_header(content, 2) + 1 :],
        lambda _: b"no archive at all, but long enough to be one" * 50,
        lambda _: b"",
    ],
)
def test_a_damaged_archive_is_one_line(tmp_path: Path, spoil: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "w.tar"
    write_tar(path, [*vqa_members("1"), *vqa_members("2")])
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(DataError, match=r"w\.tar is not a plain tar archive") as caught:
        read(tar_source(path, "vqa"))
    assert "\n" not in str(caught.value)


def test_an_archive_that_leads_backwards_ends(tmp_path: Path) -> None:
    info = tarfile.TarInfo("1.json")
    info.pax_headers = {"size": "-2048"}
    path = tmp_path / "w.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(info)
    with pytest.raises(DataError, match="not a plain tar archive"):
        read(tar_source(path, "vqa"))


@pytest.mark.parametrize("suffix", ["feather", "arrow"])
def test_offsets_that_lead_out_of_a_column_are_noticed(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"t.{suffix}"
    names = [{"uid": uid, "image": "1.jpg", "references": "x"} for uid in ("abc", "defg")]
    write_table(path, names)
    content = path.read_bytes()
    offsets = struct.pack("<3i", 0, 3, 7)
    assert content.count(offsets) == 1
    path.write_bytes(content.replace(offsets, struct.pack("<3i", 0, 1 << 30, 7)))
    with pytest.raises(DataError, match="is not a usable table"):
        read(table_source(path, "caption", images=str(tmp_path)))


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + bytes(100) + b"PAR1", b"ARROW1\0\0x"])
def test_a_damaged_table_is_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "t.parquet"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"t\.parquet is not a usable table") as caught:
        read(table_source(path, "vqa"))
    assert "\n" not in str(caught.value)
