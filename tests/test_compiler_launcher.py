"""A ccache that comes or goes between two builds: what is compiled again, by CMake on a project of one file."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from required import absent

RULE = Path(__file__).parent.parent / "cmake" / "compiler-launcher.cmake"

PROJECT = """cmake_minimum_required(VERSION 3.24)
project(tiny LANGUAGES C)
include("{rule}")
option(GGML_CCACHE "as in ggml: on by default" ON)
if(GGML_CCACHE)
    find_program(GGML_CCACHE_FOUND ccache)
    find_program(GGML_SCCACHE_FOUND sccache)
    if(GGML_CCACHE_FOUND)
        set_property(GLOBAL PROPERTY RULE_LAUNCH_COMPILE ccache)
    endif()
endif()
add_executable(tiny tiny.c)
"""

CCACHE = """#!/bin/sh
echo run >> "$(dirname "$0")/../launched"
exec "$@"
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project, and a PATH with a compiler and nothing else; its folder of programs is ``bin``."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("cmake", "ninja", "cc", "as", "ld", "sh", "dirname"):
        found = shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        if found is None:
            absent("native", f"{name} is not on PATH")
        (programs / name).write_text(f'#!/bin/sh\nexec "{found}" "$@"\n')
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(programs))
    (tmp_path / "CMakeLists.txt").write_text(PROJECT.replace("{rule}", RULE.as_posix()))
    (tmp_path / "tiny.c").write_text("int main(void) { return 0; }\n")
    return tmp_path


def build(project, *options):
    """Configures and builds; returns how many files were compiled, and CMake's words."""
    command = ["cmake", "-G", "Ninja", "-S", project, "-B", project / "build", "-DCMAKE_FIND_USE_CMAKE_SYSTEM_PATH=OFF"]
    said = subprocess.run([*command, *options], check=True, capture_output=True, text=True).stdout
    done = subprocess.run(["cmake", "--build", project / "build"], check=True, capture_output=True, text=True).stdout
    return done.count("Building C object"), said


def install_ccache(project):
    (project / "bin" / "ccache").write_text(CCACHE)
    (project / "bin" / "ccache").chmod(0o755)


def launched(project):
    return (project / "launched").exists()


def test_a_ccache_that_comes_later_compiles_nothing_again(project):
    count, said = build(project)
    assert count == 1 and "no ccache" in said
    install_ccache(project)
    assert build(project)[0] == 0 and not launched(project)


def test_a_build_that_was_begun_without_ccache_before_this_rule_is_kept(project):
    (project / "CMakeLists.txt").write_text(PROJECT.replace('include("{rule}")\n', ""))
    assert build(project)[0] == 1
    install_ccache(project)
    (project / "CMakeLists.txt").write_text(PROJECT.replace("{rule}", RULE.as_posix()))
    assert build(project)[0] == 0 and not launched(project)


def test_a_ccache_that_is_there_is_used(project):
    install_ccache(project)
    assert build(project)[0] == 1 and launched(project)
    assert build(project)[0] == 0


def test_a_user_decides_otherwise(project):
    install_ccache(project)
    assert build(project, "-DGGML_CCACHE=OFF")[0] == 1 and not launched(project)
    assert build(project, "-DGGML_CCACHE=ON")[0] == 1 and launched(project)


def test_a_ccache_that_is_gone_is_said_and_the_build_goes_on(project):
    install_ccache(project)
    build(project)
    os.remove(project / "bin" / "ccache")
    count, said = build(project)
    assert count == 1 and "bin/ccache is gone" in said
