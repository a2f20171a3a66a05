# SPDX-License-Identifier: Apache-2.0
"""TLS between a real client and a real broker, with certificates of real authorities."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from authority import Authority
from tests.waiting import until
from wire_samples import Host, message, settings, snapshot

from mvps.broker.process import EmbeddedBroker
from mvps.broker.server import BrokerError
from mvps.stream.client import StreamClient
from mvps.trust.tls import ClientTls, ServerTls, TlsError
from mvps.v1 import snapshot_pb2, stream_pb2, stream_pb2_grpc


@pytest.fixture
def ca(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "ca")


class Site:
    """A broker with TLS, and clients that end with the test."""

    def __init__(self, folder: Path, ca: Authority, *, mutual: bool = True) -> None:
        self.cert, self.key = ca.issue("broker")
        chosen, self.site = settings(
            folder, tls_cert=self.cert, tls_key=self.key, tls_client_ca=ca.path if mutual else None
        )
        self.broker = EmbeddedBroker(chosen)
        self.host = Host(self.site)
        self.clients: list[StreamClient] = []

    def client(self, tls: ClientTls | None) -> StreamClient:
        client = StreamClient(
            self.broker.address, "host-1", self.host.acks(), credentials=tls.credentials if tls else None
        )
        client.start()
        self.clients.append(client)
        return client

    def gets_through(self, client: StreamClient) -> None:
        before = client.status().totals.acknowledged
        client.submit(self.host.seal())
        until(lambda: client.status().totals.acknowledged == before + 1)

    def stays_out(self, client: StreamClient) -> str:
        client.submit(self.host.seal())
        until(lambda: client.status().state in ("waiting", "refused"))
        assert client.status().totals.acknowledged == 0
        return client.status().detail

    def close(self) -> None:
        for client in self.clients:
            client.stop()
        self.broker.stop()


@pytest.fixture
def make(tmp_path: Path, ca: Authority) -> Iterator[Callable[..., Site]]:
    made: list[Site] = []

    def make(**options: bool) -> Site:
        made.append(Site(tmp_path, ca, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_both_sides_show_certificates(make: Callable[..., Site], ca: Authority) -> None:
    site = make()
    site.gets_through(site.client(ClientTls(ca.path, *ca.issue("host"))))


def test_a_broker_that_asks_for_none(make: Callable[..., Site], ca: Authority) -> None:
    site = make(mutual=False)
    site.gets_through(site.client(ClientTls(ca.path)))


def test_whoever_has_no_certificate_stays_out(make: Callable[..., Site], ca: Authority, tmp_path: Path) -> None:
    site = make()
    other = Authority(tmp_path / "other", "other")
    site.stays_out(site.client(None))
    site.stays_out(site.client(ClientTls(ca.path)))
    site.stays_out(site.client(ClientTls(ca.path, *other.issue("host"))))
    assert site.broker.broker is not None
    assert site.broker.broker.counters()["accepted"] == 0
    site.gets_through(site.client(ClientTls(ca.path, *ca.issue("host"))))


def test_a_broker_that_nobody_vouches_for_gets_nothing(
    make: Callable[..., Site], ca: Authority, tmp_path: Path
) -> None:
    site = make(mutual=False)
    other = Authority(tmp_path / "other", "other")
    site.stays_out(site.client(ClientTls(other.path)))
    assert site.broker.broker is not None
    assert site.broker.broker.streams == 0


def test_an_expired_client_certificate_is_refused_by_both_sides(make: Callable[..., Site], ca: Authority) -> None:
    site = make()
    cert, key = ca.issue("host", begins=-5, ends=-1)
    with pytest.raises(TlsError, match=r"host\.pem: the certificate expired .*: issue a new one"):
        ClientTls(ca.path, cert, key).credentials()
    assert "issue a new one" in site.stays_out(site.client(ClientTls(ca.path, cert, key)))

    class Careless(ClientTls):
        def credentials(self) -> grpc.ChannelCredentials:
            return grpc.ssl_channel_credentials(ca.path.read_bytes(), key.read_bytes(), cert.read_bytes())

    site.stays_out(site.client(Careless(ca.path)))


def test_a_new_certificate_counts_without_a_restart_and_open_streams_go_on(
    make: Callable[..., Site], ca: Authority, tmp_path: Path
) -> None:
    site = make()
    host = ca.issue("host")
    open_one = site.client(ClientTls(ca.path, *host))
    site.gets_through(open_one)
    # The whole authority is replaced: the old client certificate no longer gets anybody in.
    fresh = Authority(tmp_path / "fresh")
    for path, other in zip((site.cert, site.key), fresh.issue("broker"), strict=True):
        os.replace(other, path)
    os.replace(fresh.path, ca.path)
    site.stays_out(site.client(ClientTls(ca.path, *host)))
    own = fresh.issue("host")
    late = site.client(ClientTls(ca.path, *own))
    site.gets_through(late)
    site.gets_through(open_one)
    assert open_one.status().reconnects == 0
    # Its own files change, too: read at the next connect.
    for path, other in zip(host, own, strict=True):
        os.replace(other, path)
    open_one.retarget(site.broker.address)
    site.gets_through(open_one)
    assert open_one.status().reconnects == 1


def test_a_bad_file_keeps_what_was_good(make: Callable[..., Site], ca: Authority) -> None:
    site = make(mutual=False)
    site.key.write_text("no key")
    site.gets_through(site.client(ClientTls(ca.path)))
    assert site.broker.broker is not None
    assert site.broker.broker._tls is not None
    assert "holds no private key in PEM" in site.broker.broker._tls.error


def test_certificate_of_another_name(make: Callable[..., Site], ca: Authority) -> None:
    site = make(mutual=False)
    with grpc.secure_channel(
        f"localhost:{site.broker.address.rpartition(':')[2]}", ClientTls(ca.path).credentials()
    ) as channel:
        stub = stream_pb2_grpc.BrokerStub(channel)
        with pytest.raises(grpc.RpcError):
            stub.ServerInfo(stream_pb2.ServerInfoRequest(), timeout=5)


def test_an_operator_is_known_by_the_name_in_its_certificate(ca: Authority, tmp_path: Path) -> None:
    cert, key = ca.issue("broker")
    chosen, site = settings(tmp_path, tls_cert=cert, tls_key=key, tls_client_ca=ca.path, operators=("alice",))
    broker = EmbeddedBroker(chosen)
    try:
        body = snapshot()
        surface = body.surfaces.add(name="ai.g", needed_ticks=60, lateral=snapshot_pb2.LATERAL_COHERENT_BUT_FALSE)
        surface.vector.c4 = 0.25
        shown = {}
        for name in ("host", "alice", "malice"):
            credentials = ClientTls(ca.path, *ca.issue(name)).credentials()
            with grpc.secure_channel(broker.address, credentials) as channel:
                stub = stream_pb2_grpc.BrokerStub(channel)
                if name == "host":
                    sealed = stream_pb2.Batch.FromString(message(Host(site).seal(body, tick=body.tick)))
                    next(stub.Stream(iter([sealed]), timeout=10))
                answer = stub.ListVantages(stream_pb2.ListVantagesRequest(), timeout=10)
                shown[name] = (answer.vantages[0].latest.surfaces[-1].vector.HasField("c4"), list(answer.withheld))
        withheld = (False, ["vector.c4", "lateral"])
        assert shown == {"host": withheld, "alice": (True, []), "malice": withheld}
    finally:
        broker.stop()


def test_what_is_wrong_is_said(ca: Authority, tmp_path: Path) -> None:
    cert, key = ca.issue("broker")
    ServerTls(cert, key, ca.path)
    other_cert, other_key = ca.issue("other")
    expired = ca.issue("expired", begins=-3, ends=-1)
    early = ca.issue("early", begins=1)
    dead = Authority(tmp_path / "dead", "dead", days=-1)
    open_key = tmp_path / "open.key"
    open_key.write_bytes(key.read_bytes())
    open_key.chmod(0o640)
    garbage = tmp_path / "garbage"
    garbage.write_text("x")
    garbage.chmod(0o600)
    for files, words in (
        ((cert, other_key, None), "is not the key of the first certificate"),
        ((other_cert, key, None), "replace both"),
        ((cert, open_key, None), r"can be read by others \(mode 0640\): chmod 600"),
        ((cert, tmp_path / "absent", None), "No such file"),
        ((*expired, None), "expired"),
        ((*early, None), "is this host's clock right"),
        ((garbage, key, None), "holds no certificate in PEM"),
        ((cert, garbage, None), "holds no private key in PEM"),
        ((cert, key, garbage), "holds no certificate in PEM"),
        ((cert, key, dead.path), "authority's certificate expired"),
        ((cert, tmp_path, None), "not a regular file|Is a directory"),
    ):
        with pytest.raises(TlsError, match=words):
            ServerTls(*files)


def test_a_broker_does_not_start_with_what_is_wrong(tmp_path: Path, ca: Authority) -> None:
    cert, _ = ca.issue("broker")
    _, key = ca.issue("other")
    chosen, _ = settings(tmp_path, tls_cert=cert, tls_key=key)
    with pytest.raises(BrokerError, match=r"tls: .* is not the key"):
        EmbeddedBroker(chosen)
    for half in ({"tls_cert": cert}, {"tls_key": key}, {"tls_client_ca": cert}):
        with pytest.raises(ValueError, match="tls_"):
            settings(tmp_path, **half)


def test_no_key_material_is_shown(ca: Authority, tmp_path: Path) -> None:
    cert, key = ca.issue("broker")
    body = key.read_text().splitlines()[1]
    key.write_text(key.read_text().replace("BEGIN", "BEGAN"))
    with pytest.raises(TlsError) as caught:
        ServerTls(cert, key)
    assert body not in str(caught.value)
