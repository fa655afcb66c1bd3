"""Variables of the environment with a mistake: one message and status 2, so that no launcher starts again for ever."""

import subprocess

import pytest

from premem_jax.errors import UserError
from premem_jax.running import environment
from tests.configs import tiny
from tests.processes import ENVIRONMENT, command, mistake


def test_what_xla_reads_is_left_alone(monkeypatch):
    for flags in ("", "--xla_force_host_platform_device_count=2 --xla_cpu_enable_fast_math=false"):
        monkeypatch.setenv("XLA_FLAGS", flags)
        environment.check()


@pytest.mark.parametrize("flags", ["--xla_no_such_flag=1", "--xla_cpu_enable_fast_math=perhaps", "/no/such/file"])
def test_what_xla_cannot_read_is_named(monkeypatch, flags):
    monkeypatch.setenv("XLA_FLAGS", flags)
    with pytest.raises(UserError, match="XLA_FLAGS"):
        environment.check()


@pytest.mark.parametrize("text", ["abc", "1.0", "0x2", "-"])
def test_numbers(monkeypatch, text):
    monkeypatch.setenv("PREMEM_PROCESSES", text)
    with pytest.raises(UserError, match="PREMEM_PROCESSES"):
        environment.whole("PREMEM_PROCESSES")
    monkeypatch.setenv("PREMEM_PROCESSES", " 2 ")
    assert environment.whole("PREMEM_PROCESSES") == 2
    monkeypatch.delenv("PREMEM_PROCESSES")
    assert environment.whole("PREMEM_PROCESSES") is None


def test_the_program_ends_with_one_message(tmp_path):
    wrong = {"XLA_FLAGS": "--xla_no_such_flag", "JAX_ENABLE_X64": "maybe", "PREMEM_JOIN_SECONDS": "soon"}
    line = command([f"--workdir={tmp_path}/run"], tiny.__file__)
    programs = {
        name: subprocess.Popen(line, env=ENVIRONMENT | {name: value}, stdout=-1, stderr=-1, text=True)
        for name, value in wrong.items()
    }
    for name, program in programs.items():
        out, err = program.communicate(timeout=120)
        assert name in mistake(subprocess.CompletedProcess(line, program.returncode, out, err))
    assert not (tmp_path / "run").exists()
