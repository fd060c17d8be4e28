import pytest

from t5x_scale.core import batch as batch_lib
from t5x_scale.core.errors import UserError
from t5x_scale.data import store_manifest, token_store
from t5x_scale.data.pipeline import DataConfig, make_eval_sources, make_pipeline
from t5x_scale.data.rows.packed_delivery import PackDocuments
from t5x_scale.data.store_check import StoreCheck


def flip(path, byte):
    content = bytearray(path.read_bytes())
    content[byte] ^= 0x80
    path.write_bytes(content)


@pytest.fixture
def blocks(monkeypatch):
    """Checksums of 1,000 tokens each."""
    for module in (store_manifest, token_store):
        monkeypatch.setattr(module, "CHECKSUM_TOKENS", 1000)


@pytest.fixture
def store(blocks, make_store, tmp_path):
    return make_store(tmp_path / "s", 10_000)


@pytest.mark.parametrize("small", [0, 2**20])
def test_a_sound_store_is_sound(store, small):
    assert store.num_blocks == 10
    check = StoreCheck({"s": store}, small=small)
    check.wait()
    check.raise_if_damaged()


def test_a_small_store_is_read_before_the_first_step(store):
    flip(store.directory / "tokens" / "c" / "7", 5)
    with pytest.raises(UserError, match=r"s is damaged: tokens 7000 to 8000 .* build it again"):
        StoreCheck({"s": store})


def test_a_large_store_is_read_beside_the_run(store, make_source):
    flip(store.directory / "tokens" / "c" / "7", 5)
    check = StoreCheck({"s": store}, small=0)
    with pytest.raises(UserError, match="tokens 7000 to 8000"):
        check.wait()
    source = make_source({"s": store}, check=check)
    with pytest.raises(UserError, match="tokens 7000 to 8000"):
        source.batch(0)
    with pytest.raises(UserError, match="tokens 7000 to 8000"):
        source.resumed(make_source({"s": store}).state(3), 3).batch(3)


def test_hosts_share_out_the_reading(store):
    flip(store.directory / "tokens" / "c" / "7", 5)
    for host in range(3):
        check = StoreCheck({"s": store}, small=0, process_index=host, process_count=3)
        if host == 7 % 3:
            with pytest.raises(UserError, match="is damaged"):
                check.wait()
        else:
            check.wait()


def test_it_keeps_its_pace(store, monkeypatch):
    waits = []
    monkeypatch.setattr("t5x_scale.data.store_check.time.sleep", waits.append)
    monkeypatch.setattr("t5x_scale.data.store_check.time.monotonic", lambda: 0.0)
    StoreCheck({"s": store}, small=0, pace=1000).wait()
    # Blocks of 1,000 tokens of two bytes.
    assert waits == [2.0] * 10


@pytest.mark.parametrize("part", ["tokens", "documents"])
@pytest.mark.parametrize("packing", [None, PackDocuments()], ids=["windows", "documents"])
def test_a_run_on_a_damaged_store_does_not_begin(tmp_path, part, packing):
    (tmp_path / "book.txt").write_text("A line of a book.\n" * 2000)
    options = {} if packing is None else {"packing": packing}
    config = DataConfig(f"text:{tmp_path}/book.txt", "bytes", {"targets": 32}, 4, **options)
    batch = make_pipeline(config, default_store_dir=tmp_path / "stores").batch(0)
    assert batch_lib.check_batch(batch) == (4, 32)
    make_eval_sources(config, default_store_dir=tmp_path / "stores")
    for file in (tmp_path / "stores").glob(f"*/{part}/c/0"):
        flip(file, 0)
    for make in (make_pipeline, make_eval_sources):
        with pytest.raises(UserError, match="is damaged"):
            make(config, default_store_dir=tmp_path / "stores")
