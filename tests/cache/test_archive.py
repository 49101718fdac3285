"""Pages, the pools that store them, and the slots that they are copied to."""

from __future__ import annotations

import errno
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llrag_cli.cache import archive
from llrag_cli.cache.archive import Slots
from llrag_cli.cache.kv import KEYS, VALUES
from llrag_cli.cache.pages import DiskPool, HostPool, Layout, Pool, reserve
from llrag_cli.cache.tiers import TIERS, Tier
from llrag_cli.cli.hints import hint_for
from llrag_cli.errors import LlragError

CPU = torch.device("cpu")
shapes = st.tuples(st.integers(1, 7), st.integers(1, 3), st.sampled_from([2, 6, 16]))
dtypes = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])


def unpacked(layout: Layout, pages: torch.Tensor, dtype: torch.dtype) -> list[torch.Tensor]:
    """Keys and values [n, tokens, heads, D] of pages [n, bytes]."""
    every = range(len(pages))
    return [torch.cat(layout.unpack(pages[None], kind, dtype, every), dim=1)[0] for kind in (KEYS, VALUES)]


@given(shape=shapes, dtype=dtypes, eight_bit=st.booleans(), seed=st.integers(0, 99))
def test_a_page_gives_back_what_was_put_in(
    shape: tuple[int, int, int], dtype: torch.dtype, eight_bit: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    keys, values = (torch.randn(2, *shape).mul(10 ** torch.randn(1)).to(dtype) for _ in range(2))
    layout = Layout.of(shape, dtype, eight_bit=eight_bit)
    pages = torch.zeros(2, layout.bytes, dtype=torch.uint8)
    for view, part in zip(layout.parts(pages), layout.pack(keys, values), strict=True):
        view.copy_(part)
    found = unpacked(layout, pages, dtype)
    if not eight_bit:
        assert torch.equal(found[0], keys) and torch.equal(found[1], values)
        return
    rounding = torch.finfo(dtype).eps
    for was, now, dim in ((keys, found[0], 1), (values, found[1], 3)):
        step = was.float().abs().amax(dim=dim, keepdim=True) / 127
        assert ((was.float() - now.float()).abs() <= step * (0.5 + 127 * rounding) + 1e-12).all()


def test_eight_bits_take_a_half_or_a_quarter() -> None:
    full = (1560, 12, 128)
    exact = {dtype: Layout.of(full, dtype).bytes for dtype in (torch.float32, torch.bfloat16)}
    assert exact[torch.bfloat16] == 2 * 1560 * 12 * 128 * 2
    small = Layout.of(full, torch.bfloat16, eight_bit=True).bytes
    assert small / exact[torch.bfloat16] == pytest.approx(0.5, rel=0.02)
    assert small / exact[torch.float32] == pytest.approx(0.25, rel=0.02)


@pytest.mark.parametrize("kind", ["host", "disk"])
@given(data=st.data())
def test_a_pool_keeps_every_part_of_every_page(
    tmp_path_factory: pytest.TempPathFactory, kind: str, data: st.DataObject
) -> None:
    pages, parts, size = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 3)), 64
    folder = tmp_path_factory.mktemp("pool")
    pool: Pool = (
        HostPool(pages, parts * size, device=CPU) if kind == "host" else DiskPool(pages, parts * size, folder=folder)
    )
    assert pool.bytes == pages * parts * size
    expected = torch.randint(0, 256, (pages, parts, size), dtype=torch.uint8)
    parts_of_pages = [(page, part) for page in range(pages) for part in range(parts)]
    for page, part in data.draw(st.permutations(parts_of_pages)):
        pool.put(page, part * size, expected[page, part])
        if data.draw(st.booleans()):
            pool.flush()
    for page in range(pages):
        found = torch.zeros(parts * size, dtype=torch.uint8)
        pool.get(page, found)
        assert torch.equal(found, expected[page].flatten())
        pool.rest()
    pool.close()
    assert list(folder.iterdir()) == []  # the file has no name, so nothing can be left behind


@given(
    data=st.data(),
    rows=st.integers(1, 3),
    count=st.integers(1, 5),
)
def test_slots_hold_what_was_claimed_and_move_only_what_is_missing(data: st.DataObject, rows: int, count: int) -> None:
    slots = Slots(rows, count)
    inside: list[list[int]] = [[] for _ in range(rows)]  # a plain model: frames, the least recently retrieved first
    for _ in range(data.draw(st.integers(1, 12))):
        length = data.draw(st.integers(0, count))
        frames = st.lists(st.integers(0, 9), min_size=length, max_size=length, unique=True)
        retrieved = [data.draw(frames) for _ in range(rows)]
        moved = slots.claim(retrieved)
        assert {(row, frame) for row, frame, _ in moved} == {
            (row, frame) for row in range(rows) for frame in retrieved[row] if frame not in inside[row]
        }
        for row, held in enumerate(inside):
            again = [frame for frame in retrieved[row] if frame in held]
            new = [frame for frame in retrieved[row] if frame not in held]
            held[:] = [*(frame for frame in held if frame not in again), *again, *new][-count:]
        numbers = [[slots.of(row, frame) for frame in frames] for row, frames in enumerate(retrieved)]
        assert all(len(set(row)) == length and set(row) <= set(range(count)) for row in numbers)
        for row, frame, slot in moved:
            assert slots.of(row, frame) == slot
        if data.draw(st.booleans()):  # once more: nothing is missing
            assert slots.claim(retrieved) == []
            for row, held in enumerate(inside):
                held[:] = [*(frame for frame in held if frame not in retrieved[row]), *retrieved[row]]


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file of this process may grow beyond 100 kB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("small_files")
def test_a_disk_too_small_is_known_before_the_first_page(tmp_path: Path) -> None:
    DiskPool(10, 10_000, folder=tmp_path)
    with pytest.raises(LlragError, match=r"cannot reserve 110 kB of disk in `.*`: file too large") as caught:
        DiskPool(11, 10_000, folder=tmp_path)
    assert "set `memory.archive` to `recompute`" in caught.value.hint
    assert "`--archive recompute`" in hint_for(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("small_files")
def test_room_is_taken_where_the_system_knows_no_fallocate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("os.posix_fallocate")
    with (tmp_path / "file").open("wb", buffering=0) as file:
        reserve(file.fileno(), 99_999)
        assert (tmp_path / "file").stat().st_size == 99_999
        with pytest.raises(OSError, match="File too large"):
            reserve(file.fileno(), 100_001)


def test_a_disk_that_fills_up_while_writing_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the space that was reserved is not there after all, as on file systems that copy on write."""
    pool = DiskPool(2, 64, folder=tmp_path)

    class Full:
        def seek(self, offset: int) -> None: ...

        def write(self, content: memoryview) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pool, "_file", Full())
    with pytest.raises(LlragError, match=r"cannot reserve 128 B of disk in `.*`: no space left on device"):
        pool.put(1, 0, torch.zeros(64, dtype=torch.uint8))


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = DiskPool(1, 64, folder=tmp_path)
    file = pool._file

    class Slow:
        def seek(self, offset: int) -> int:
            return file.seek(offset)

        def write(self, content: memoryview) -> int | None:
            return file.write(content[:7])

    monkeypatch.setattr(pool, "_file", Slow())
    page = torch.arange(64, dtype=torch.uint8)
    pool.put(0, 0, page)
    assert torch.equal(pool.page(0), page)


def test_a_folder_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(LlragError, match=r"cannot reserve 64 B of disk in `.*`: no such file or directory"):
        DiskPool(1, 64, folder=tmp_path / "nowhere")


def test_space_is_reserved_where_the_system_cannot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("os.posix_fallocate")
    with (tmp_path / "file").open("wb") as file:
        reserve(file.fileno(), 2_500_000)
    assert (tmp_path / "file").stat().st_size == 2_500_000


def test_tiers_need_more_slots_where_a_page_costs_a_pass() -> None:
    assert archive.slots_of("host", 6) == 6
    assert archive.slots_of("recompute", 6) == 12


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_channel_of_zeros_stays_zero_in_eight_bits(dtype: torch.dtype) -> None:
    keys, values = torch.ones(2, 4, 2, 6, dtype=dtype), torch.ones(2, 4, 2, 6, dtype=dtype)
    keys[..., 1] = 0  # a channel of all tokens
    values[:, 2] = 0  # all channels of a token
    layout = Layout.of((4, 2, 6), dtype, eight_bit=True)
    pages = torch.zeros(2, layout.bytes, dtype=torch.uint8)
    by_channel, by_token, *_ = packed = layout.pack(keys, values)
    assert (by_channel > 0).all() and (by_token > 0).all()  # dividing by 0 gives what the machine likes
    for view, part in zip(layout.parts(pages), packed, strict=True):
        view.copy_(part)
    for found, was in zip(unpacked(layout, pages, dtype), (keys, values), strict=True):
        assert (found == 0).eq(was == 0).all() and found.isfinite().all()
        torch.testing.assert_close(found, was)


@pytest.mark.parametrize("tier", [tier for tier in TIERS if tier != "device"])
def test_an_archive_takes_nothing_before_its_first_frame(tier: Tier) -> None:
    made = archive.new_archive(tier, retrieved=2, frames=4)
    assert made is not None
    assert made.device_bytes == made.pool_bytes == made.moved == 0
