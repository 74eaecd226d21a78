from __future__ import annotations

import asyncio
import logging
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import pytest

from statestream.errors import StoreUnavailable
from statestream_server.stores.base import NEWER, Key, Mode, Record, Store, Survival, Verdict
from statestream_server.stores.redis import RedisStore
from statestream_server.stores.redis_keys import BUCKETS
from tests.server.stores.compliance import StoreCompliance
from tests.server.stores.compliance.asking import (
    KEY,
    A,
    claim,
    claim_of,
    created_and_saved,
    epochs_of,
    loaded,
    replace,
)
from tests.server.stores.redis_server import Server, free_port, redis_server, wait_until
from tests.services import require_binary

pytestmark = pytest.mark.service


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
async def store(server: Server) -> AsyncIterator[Store]:
    server.client.flushall()
    store = RedisStore(server.patient)
    await store.start()
    yield store
    await store.close()


class TestRedisStore(StoreCompliance):
    pass


@contextmanager
def cluster(folders: list[Path]) -> Iterator[list[Server]]:
    """A Cluster of primaries, one in each folder, with equal shares of the slots."""
    with ExitStack() as stack:
        nodes: list[Server] = []
        for number, folder in enumerate(folders):
            folder.mkdir(exist_ok=True)
            node = stack.enter_context(redis_server(folder, "--cluster-enabled", "yes"))
            slots = range(16_384 * number // len(folders), 16_384 * (number + 1) // len(folders))
            node.client.execute_command("CLUSTER", "ADDSLOTSRANGE", slots[0], slots[-1])
            node.client.execute_command("CLUSTER", "MEET", "127.0.0.1", nodes[0].port if nodes else node.port)
            nodes.append(node)
        for node in nodes:
            wait_until(partial(_has_all_slots, node), "the Cluster has all slots")
        yield nodes


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Server]]:
    """A Cluster, in which a script that touches keys of two slots is refused."""
    with cluster([tmp_path_factory.mktemp("node") for _ in range(2)]) as nodes:
        yield nodes


def _has_all_slots(node: Server) -> bool:
    return "cluster_state:ok" in str(node.client.execute_command("CLUSTER", "INFO"))


class TestRedisCluster(StoreCompliance):
    @pytest.fixture
    async def store(self, nodes: list[Server]) -> AsyncIterator[Store]:
        for node in nodes:
            node.client.flushall()
        store = RedisStore(nodes[0].patient)
        await store.start()
        yield store
        await store.close()

    async def test_both_nodes_have_records(self, store: Store, nodes: list[Server]) -> None:
        records = [Record(Key("t", "m", str(number)), 1, 1, 1, A, 1) for number in range(200)]
        assert all(await store.save(records))
        counts = [len(list(node.client.scan_iter("ss:{b*}:r:*"))) for node in nodes]
        assert sum(counts) == 200
        assert min(counts) > 50

    async def test_scripts_that_a_node_forgot_are_loaded_again(self, store: Store, nodes: list[Server]) -> None:
        for node in nodes:
            node.client.script_flush()
        await created_and_saved(store)
        assert (await loaded(store)).position == 5

    async def test_every_node_waits_for_its_replicas(self, store: Store, nodes: list[Server]) -> None:
        waiting = RedisStore(f"{nodes[0].url}?wait=1&wait_timeout_ms=20")
        await waiting.start()
        with pytest.raises(StoreUnavailable, match="0 replicas of the store"):
            await claim(waiting)
        await waiting.close()
        assert (await loaded(store)).epoch == 10


async def _refused(url: str, *words: str) -> None:
    store = RedisStore(url)
    with pytest.raises(StoreUnavailable) as caught:
        await store.start()
    for word in words:
        assert word in caught.value.message
    assert "secret" not in caught.value.message
    await store.close()


async def test_it_says_what_it_survives(server: Server, tmp_path: Path) -> None:
    store = RedisStore(server.patient)
    await store.start()
    assert store.kind == "redis"
    assert store.survives == Survival(process_kill=True, power_loss=False, failover=False)
    await store.close()
    with redis_server(tmp_path, "--appendonly", "yes", "--appendfsync", "always") as careful:
        store = RedisStore(f"{careful.url}?wait=1")
        assert store.survives == Survival(process_kill=True, power_loss=False, failover=True)
        await careful_start(store)
        assert store.survives.power_loss
        await store.close()


async def careful_start(store: RedisStore) -> None:
    """Starts a store that waits for a replica that is not there: only its first write fails."""
    with pytest.raises(StoreUnavailable, match="0 replicas of the store .* confirmed a write, 1 were to"):
        await store.start()
    await store.start()


async def test_a_redis_that_evicts_is_refused(tmp_path: Path) -> None:
    with redis_server(tmp_path, "--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru") as server:
        await _refused(server.url, f"redis://127.0.0.1:{server.port}/0", "allkeys-lru", "CONFIG SET maxmemory-policy")
        server.client.config_set("maxmemory-policy", "noeviction")
        store = RedisStore(server.patient)
        await store.start()
        await store.close()


async def test_a_redis_that_does_not_tell_its_settings_is_used_with_a_warning(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    server.client.acl_setuser(
        "narrow", enabled=True, passwords=["+secret"], keys=["*"], categories=["+@all"], commands=["-config"]
    )
    store = RedisStore(f"redis://narrow:secret@127.0.0.1:{server.port}/0")
    with caplog.at_level(logging.WARNING):
        await store.start()
    assert "make sure that maxmemory-policy is noeviction" in caplog.text
    assert "secret" not in caplog.text
    assert not store.survives.power_loss
    await created_and_saved(store, Key("t", "m", "narrow"))
    await store.close()


async def test_nobody_there() -> None:
    port = free_port()
    await _refused(f"redis://:secret@127.0.0.1:{port}", f"redis://127.0.0.1:{port} does not answer", "is it running")


async def test_a_missing_or_wrong_password(tmp_path: Path) -> None:
    with redis_server(tmp_path, "--requirepass", "right") as server:
        await _refused(server.url, "give the right user and password")
        await _refused(f"redis://:secret@127.0.0.1:{server.port}", "give the right user and password")
        (tmp_path / "password").write_text("right\n")
        for url in (
            f"redis://:right@127.0.0.1:{server.port}",
            f"redis://127.0.0.1:{server.port}?password_file={tmp_path / 'password'}",
        ):
            store = RedisStore(url)
            await store.start()
            await store.close()


async def test_before_start_and_after_close_there_is_no_store(server: Server) -> None:
    store = RedisStore(server.patient)
    with pytest.raises(StoreUnavailable, match="is not open"):
        await claim(store)
    await store.start()
    await store.close()
    await store.close()
    with pytest.raises(StoreUnavailable, match="is not open"):
        await store.load([KEY])


@contextmanager
def impatient(store: RedisStore, seconds: float) -> Iterator[None]:
    """While this is entered, the store gives an answer so long; before and after, a busy machine may take its time."""
    address = store._link.address
    store._link.address = address._replace(timeout=seconds)
    yield
    store._link.address = address


async def test_a_redis_that_stands_still_is_an_error_in_time(tmp_path: Path) -> None:
    with redis_server(tmp_path) as server:
        store = RedisStore(server.patient)
        await store.start()
        saved = await created_and_saved(store)
        server.process.send_signal(signal.SIGSTOP)
        batch = [replace(saved, key=Key("t", "m", str(number)), blob=bytes(100_000)) for number in range(200)]
        with impatient(store, 0.2):
            for call in (store.save(batch), claim(store), store.load([KEY]), store.list("t", "", ("", ""), 1)):
                with pytest.raises(StoreUnavailable, match=r"no answer within 0\.2 s"):
                    await asyncio.wait_for(call, 5)
        server.process.send_signal(signal.SIGCONT)
        assert (await loaded(store)).position == 5
        await store.close()


async def test_a_restarted_empty_redis_is_another_generation(tmp_path: Path) -> None:
    with redis_server(tmp_path) as server:
        store = RedisStore(server.patient)
        await store.start()
        saved = await created_and_saved(store)
        generation = await store.generation()
        server.client.flushall()
        flushed = await store.generation()
        assert flushed != generation
    with pytest.raises(StoreUnavailable, match="does not answer"):
        await store.save([saved])
    with redis_server(tmp_path, port=server.port):
        assert await store.generation() not in (generation, flushed)
        assert await store.save([saved]) == [True]
        assert (await loaded(store)).position == 5
        await store.close()


async def test_two_stores_have_one_generation(server: Server) -> None:
    server.client.flushall()
    stores = [RedisStore(server.patient) for _ in range(4)]
    await asyncio.gather(*(store.start() for store in stores))
    assert len({await store.generation() for store in stores}) == 1
    for store in stores:
        await store.close()


async def test_a_cancelled_call_ends_and_leaves_the_store_usable(store: Store) -> None:
    records = [Record(Key("t", "m", str(number)), 1, 1, number, A, 1, blob=b"%d" % number) for number in range(3000)]
    for turns in range(1, 40):
        task = asyncio.ensure_future(store.save(records))
        for _ in range(turns):
            await asyncio.sleep(0)
        assert not task.done()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        found = await store.load([record.key for record in records[:5]])
        assert all(record is None or record.blob == record.key.id.encode() for record in found)
    assert all(await store.save(records))
    assert [record and record.position for record in await store.load([r.key for r in records])] == [*range(3000)]


async def test_a_full_redis_is_an_error(tmp_path: Path) -> None:
    with redis_server(tmp_path, "--maxmemory", "8mb") as server:
        store = RedisStore(server.patient)
        await store.start()
        saved = await created_and_saved(store)
        batch = [replace(saved, key=Key("t", "m", str(number)), blob=bytes(10_000)) for number in range(2000)]
        with pytest.raises(StoreUnavailable, match="memory is full; raise maxmemory"):
            await store.save(batch)
        assert (await loaded(store)).position == 5
        server.client.config_set("maxmemory", "100mb")
        assert all(await store.save(batch))
        await store.close()


async def test_what_a_newer_release_wrote_fences_and_stays_as_it_is(store: Store, server: Server) -> None:
    """For claims it is UNKNOWN, for saves and those who ask for epochs a newer owner's; its neighbours are served."""
    saved = await created_and_saved(store)
    (name,) = server.client.scan_iter("ss:{b*}:r:*")
    server.client.setrange(name, 0, b"\x09")
    before, other = server.client.get(name), Key("tenant", "model", "other")
    assert await store.save([saved, Record(other, 1, 1, 1, A, 1)]) == [False, True]
    claims = [claim_of(mode=mode) for mode in Mode] + [claim_of(other)]
    verdicts = [answer.verdict for answer in await store.claim(claims)]
    assert verdicts == [Verdict.UNKNOWN] * len(Mode) + [Verdict.TAKEN]
    assert epochs_of(await store.heads([KEY, other])) == [NEWER, 10]
    found = [(record.epoch, record.blob) for record in await store.load([KEY, other]) if record is not None]
    assert found == [(NEWER, None), (10, None)]
    listed = await store.list("tenant", "", ("", ""), 9)
    assert [(record.key, record.epoch) for record in listed] == [(other, 10), (KEY, NEWER)]
    assert await store.delete([KEY], [NEWER - 1], [1]) == [False]
    assert await store.expire(1e12, ephemeral_before=1e12) == 1
    assert server.client.get(name) == before


async def test_a_batch_is_one_script_call_for_each_bucket(store: Store, server: Server) -> None:
    records = [Record(Key("t", "m", str(number)), 1, 1, 1, A, 1, blob=b"x") for number in range(5000)]
    server.client.config_resetstat()
    assert all(await store.save(records))
    calls = server.client.info("commandstats")["cmdstat_evalsha"]["calls"]
    assert 2500 < calls <= BUCKETS
    tags = {name.split(b"}")[0] for name in server.client.scan_iter("ss:{b*}:r:*", count=10_000)}
    assert len(tags) == calls


async def test_writes_wait_for_the_replica_and_survive_the_primary(tmp_path: Path) -> None:
    folders = [tmp_path / "primary", tmp_path / "replica"]
    for folder in folders:
        folder.mkdir()
    with redis_server(folders[0], "--repl-diskless-sync-delay", "0") as primary:
        follow = ("--replicaof", f"127.0.0.1 {primary.port}")
        with redis_server(folders[1], *follow) as replica:
            wait_until(lambda: primary.client.info("replication")["connected_slaves"] == 1, "the replica follows")
            wait_until(lambda: replica.client.info("replication")["master_link_status"] == "up", "it has the data")
            await _refused(replica.url, "it is a replica; name the primary")
            store = RedisStore(f"{primary.url}?wait=1&wait_timeout_ms=2000")
            await store.start()
            assert store.survives.failover
            saved = await created_and_saved(store)
            primary.process.kill()
            replica.client.execute_command("REPLICAOF", "NO", "ONE")
            promoted = RedisStore(replica.patient)
            await promoted.start()
            assert (await loaded(promoted)).position == 5
            assert (await claim(promoted)).verdict is Verdict.TAKEN
            assert await promoted.save([saved]) == [False]
            await promoted.close()
            await store.close()


async def test_a_write_that_no_replica_confirmed_is_an_error(server: Server) -> None:
    server.client.flushall()
    store = RedisStore(f"{server.url}?wait=1&wait_timeout_ms=20")
    await careful_start(store)
    with pytest.raises(StoreUnavailable, match="a failover may lose it; bring replicas up"):
        await claim(store)
    await store.close()


async def test_close_waits_for_what_is_pending(server: Server) -> None:
    server.client.flushall()
    store = RedisStore(server.patient)
    await store.start()
    records = [Record(Key("t", "m", str(number)), 1, 1, number, A, 1) for number in range(3000)]
    pending = asyncio.ensure_future(store.save(records))
    await asyncio.sleep(0)
    await store.close()
    assert pending.done()
    assert await pending == [True] * 3000


async def test_records_that_redis_dropped_are_not_listed(store: Store, server: Server) -> None:
    keys = [Key("t", "m", f"{number:03}") for number in range(40)]
    assert all(await store.save([Record(key, 1, 1, 1, A, 1) for key in keys]))
    for name in list(server.client.scan_iter("ss:{b*}:r:*"))[:39]:
        server.client.unlink(name)
    (left,) = [record for record in await store.load(keys) if record is not None]
    assert [record.key for record in await store.list("t", "", ("", ""), 5)] == [left.key]
    assert await store.expire(0, ephemeral_before=0) == 0
    names = list(server.client.scan_iter("ss:{b*}:i"))
    assert sum(server.client.zcard(name) for name in names) == 1


async def test_a_dead_node_is_an_error_in_time(tmp_path: Path) -> None:
    with cluster([tmp_path / "a", tmp_path / "b"]) as nodes:
        store = RedisStore(nodes[0].patient)
        await store.start()
        records = [Record(Key("t", "m", str(number)), 1, 1, 1, A, 1) for number in range(50)]
        assert all(await store.save(records))
        nodes[1].process.kill()
        nodes[1].process.wait()
        with impatient(store, 1.0):
            for _ in range(2):
                with pytest.raises(StoreUnavailable, match=f"the store {nodes[0].url} "):
                    await asyncio.wait_for(store.save(records), 5)
        with redis_server(tmp_path / "b", "--cluster-enabled", "yes", port=nodes[1].port) as again:
            wait_until(partial(_has_all_slots, again), "the Cluster has all slots again")
            wait_until(partial(_has_all_slots, nodes[0]), "the Cluster has all slots again")
            assert await store.save(records) == [True] * 50
            await store.close()


async def test_tls(tmp_path: Path) -> None:
    key, certificate = str(tmp_path / "key.pem"), str(tmp_path / "certificate.pem")
    make = [require_binary("openssl"), "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-keyout", key]
    subject = ["-out", certificate, "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*make, *subject], check=True, capture_output=True)
    port = free_port()
    files = ["--tls-cert-file", certificate, "--tls-key-file", key, "--tls-ca-cert-file", certificate]
    with redis_server(tmp_path, "--tls-port", str(port), "--tls-auth-clients", "no", *files):
        store = RedisStore(f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={certificate}")
        await store.start()
        await created_and_saved(store)
        assert (await loaded(store)).position == 5
        await store.close()
        await _refused(f"rediss://127.0.0.1:{port}/0", "certificate verify failed")
