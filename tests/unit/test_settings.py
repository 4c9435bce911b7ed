"""Settings: origins in order, refusals that name key, value and what is allowed."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.harness.product import ROOT
from vigil_sidecar.errors import SettingsError
from vigil_sidecar.settings import load


def test_order_of_origins(tmp_path: Path) -> None:
    """Flags beat environment, which beats the file, which beats defaults."""
    file = tmp_path / "vigil.toml"
    file.write_text('[listen]\nhost = "127.0.0.2"\ngrpc_port = 1\nhttp_port = 2\n[web]\nallowed_origins = ["http://a"]\n')
    settings, origin = load(file, {"VIGIL_LISTEN_GRPC_PORT": "3", "VIGIL_LISTEN_HTTP_PORT": "4", "HOME": "/x"}, {"listen.http_port": "5"})
    assert (settings.listen_host, settings.listen_grpc_port, settings.listen_http_port) == ("127.0.0.2", 3, 5)
    assert settings.web_allowed_origins == ("http://a",)
    assert origin["listen.host"] == str(file)
    assert origin["listen.grpc_port"] == "VIGIL_LISTEN_GRPC_PORT"
    assert origin["listen.http_port"] == "flag"
    assert origin["models.dir"] == "default"


BAD = [
    ("[listen]\ngrpc_prot = 1\n", "grpc_prot"),
    ("[listen]\ngrpc_port = 70000\n", "0..65535"),
    ('[listen]\ngrpc_port = "x"\n', "listen.grpc_port"),
    ("[listen]\ngrpc_port = true\n", "listen.grpc_port"),
    ('[audit]\ndurability = "sometimes"\n', "process, interval, power"),
    ("[link]\nheartbeat_timeout_ms = 30\n", "twice"),
    ("[link]\nhang_ms = 30\n", "three times link.heartbeat_interval_ms"),
    ("[ladder]\nwait_ms = 30\n", "twice link.heartbeat_interval_ms"),
    ("not toml", "not TOML"),
    ("[limits]\nsource_idle_s = 0.5\n", "limits.source_idle_s"),
]


@pytest.mark.parametrize(("text", "named"), BAD)
def test_impossible_values_stop_both_processes(tmp_path: Path, text: str, named: str) -> None:
    """An unknown key or impossible value stops the start of either process, with exit code 2 and the key in words."""
    file = tmp_path / "vigil.toml"
    file.write_text(text)
    with pytest.raises(SettingsError, match=named):
        load(file, {}, {})
    gateway = subprocess.run([str(ROOT / "bin" / "vigil-gateway"), "--config", str(file)], capture_output=True, text=True, timeout=20)
    assert gateway.returncode == 2
    assert named in gateway.stderr


def test_unknown_environment_variable() -> None:
    """A misspelt variable is not silently ignored."""
    with pytest.raises(SettingsError, match="VIGIL_LISTEN_PORT"):
        load(None, {"VIGIL_LISTEN_PORT": "1"}, {})
