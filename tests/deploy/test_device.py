"""What a device measures of itself, its two processes, and the files that it reads."""

import socket
import threading
from pathlib import Path

import pytest

from airtune.deploy.config import DeviceConfig, ServerConfig, checked, read_toml
from airtune.deploy.energy import EnergyMeter, battery_charge, memory_byte
from airtune.deploy.folder import read_device
from airtune.deploy.messages import answer_of
from airtune.deploy.relay import ask, attend, listen
from airtune.deploy.trainer import Trainer
from airtune.deploy.uplink import throughput_bit_per_s
from airtune.types import AirtuneError


def write(folder: Path, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(f"{text}\n")


def test_rapl_counts_packages_across_a_wrap_and_no_subzones(tmp_path):
    zone = tmp_path / "powercap" / "intel-rapl:0"
    write(zone, energy_uj=9_000_000, max_energy_range_uj=10_000_000)
    write(tmp_path / "powercap" / "intel-rapl:0:0", energy_uj=1, max_energy_range_uj=10_000_000)
    meter = EnergyMeter(tmp_path)
    write(zone, energy_uj=1_500_000)
    spent = meter.read()
    assert spent.source == "rapl" and spent.energy_j == pytest.approx(2.5) and spent.seconds > 0


@pytest.mark.parametrize(
    "gauge, power_w",
    [({"power_now": 4_000_000}, 4.0), ({"current_now": -500_000, "voltage_now": 4_000_000}, 2.0)],
)
def test_a_battery_that_discharges_tells_its_power(tmp_path, gauge, power_w):
    battery = tmp_path / "power_supply" / "BAT0"
    write(battery, type="Battery", status="Discharging", capacity=64, **gauge)
    write(tmp_path / "power_supply" / "AC", type="Mains", online=0)
    spent = EnergyMeter(tmp_path).read()
    assert spent.source == "battery" and spent.energy_j == pytest.approx(power_w * spent.seconds)
    assert battery_charge(tmp_path) == 0.64
    write(battery, status="Charging")
    assert EnergyMeter(tmp_path).read().source == "computed"


def test_where_nothing_measures_it_is_computed(tmp_path):
    spent = EnergyMeter(tmp_path).read()
    assert (spent.energy_j, spent.source) == (None, "computed")
    assert battery_charge(tmp_path) is None and memory_byte(tmp_path / "none") is None
    write(tmp_path, meminfo="MemTotal: 9 kB\nMemAvailable:   2048 kB")
    assert memory_byte(tmp_path / "meminfo") == 2048 * 1024


def test_throughput_of_no_connection_is_not_told():
    assert throughput_bit_per_s("127.0.0.1:1") is None
    assert throughput_bit_per_s("no such host:1") is None


def test_blobs_cross_and_a_caller_who_hangs_up_is_forgotten(tmp_path):
    server = listen(tmp_path / "door")
    assert (tmp_path / "door").stat().st_mode & 0o777 == 0o600
    thread = threading.Thread(target=lambda: [attend(server, bytes.upper) for _ in range(2)])
    thread.start()
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(str(tmp_path / "door"))
        line.sendall(b"\0\0")
    assert ask(tmp_path / "door", b"a" * 3_000_000) == b"A" * 3_000_000
    thread.join()
    server.close()
    again = listen(tmp_path / "door")  # what a killed process left is no hindrance
    again.close()


def test_a_task_that_cannot_be_read_or_done_is_answered(tmp_path):
    trainer = Trainer(DeviceConfig(name="d", server="h:1", secure=False))
    answer, _ = answer_of(trainer.answer(b"nonsense"))
    assert answer.kind == "failure" and answer.reason.startswith("the task is malformed")


def test_device_toml_is_a_few_lines_and_its_paths_are_its_own(tmp_path):
    (tmp_path / "device.toml").write_text(
        'name = "shed"\nserver = "10.0.0.1:9443"\ncertificate = "ca.crt"\nkey = "device.key"\ndata_dir = "mine"\n'
    )
    config = read_device(tmp_path / "device.toml")
    assert config.secure and config.data_dir == tmp_path / "mine" and config.key == tmp_path / "device.key"


@pytest.mark.parametrize(
    "text, told",
    [
        ('name = "a"\nserver = "h:1"\n', "certificate and key: both are needed; secure = false does without"),
        ('name = "a"\nserver = "h"\nsecure = false\n', "server: String should match pattern"),
        ('name = "a"\nserver = "h:1"\nsecure = false\nkind = "fridge"\n', "no device class 'fridge'"),
        ('name = "a"\nserver = "h:1"\nsecure = false\nnane = 1\n', "nane: Unexpected keyword argument"),
        ("name = ", "not valid TOML"),
    ],
)
def test_mistakes_in_device_toml_are_one_line(tmp_path, text, told):
    (tmp_path / "device.toml").write_text(text)
    with pytest.raises(AirtuneError, match=r"^[^\n]*$") as error:
        read_device(tmp_path / "device.toml")
    assert told in str(error.value)
    with pytest.raises(AirtuneError, match="cannot be read"):
        read_toml(tmp_path / "none.toml", DeviceConfig)


@pytest.mark.parametrize(
    "change, told",
    [
        ({"device": [{"name": "a"}]}, "with TLS every one needs a key"),
        ({"secure": False, "device": [{"name": "a"}, {"name": "a"}]}, "none twice"),
        ({"secure": False, "min_devices": 2, "device": [{"name": "a"}]}, "2 of 1 devices"),
        ({"secure": False, "device": []}, "name at least one"),
    ],
)
def test_mistakes_in_server_toml(change, told):
    with pytest.raises(AirtuneError, match=told):
        checked({"address": "h:1", **change}, ServerConfig, "server.toml")
