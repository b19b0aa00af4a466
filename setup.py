"""Configures, builds and installs the native libraries with CMake, for wheels, editable installs and sdists alike.

CMakeLists.txt owns sources, flags and architectures; pyproject.toml owns the metadata.  The environment may set

VISIONZIP_WITH_CUDA    AUTO (the default: where nvcc is found), ON or OFF
VISIONZIP_CUDA_ARCHS   CUDA architectures, such as "80-real 90"
VISIONZIP_WERROR       ON: warnings in our own code are errors
VISIONZIP_BUILD_TYPE   Release (the default), RelWithDebInfo or Debug
"""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


def program(name):
    """Return the path of a program: this environment's own, also where the environment is not activated, or PATH's."""
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)])
    found = shutil.which(name, path=path)
    if found is None:
        raise SystemExit(f"{name} was not found; requirements/build.txt lists what a build needs")
    return found


def execute(*command):
    """Run a command; end here if it fails, so that its own words are the last."""
    status = subprocess.run(command).returncode
    if status != 0:
        raise SystemExit(status)


class CMakeBuild(build_ext):
    """Builds every library at once; setuptools' own compilation is not used."""

    def run(self):
        """Configure, build and install into the package: the source tree's own for an editable install."""
        # Kept between builds, so that only what has changed is built again; one for each Python, as _C is.
        build = ROOT / "build" / sys.implementation.cache_tag
        package = (ROOT if self.inplace else Path(self.build_lib).absolute()) / "visionzip_ext"
        cmake = program("cmake")
        # What is not set goes back to its default: a build must not depend on an earlier one's options.
        options = {
            "CMAKE_BUILD_TYPE": os.environ.get("VISIONZIP_BUILD_TYPE", "Release"),
            "CMAKE_MAKE_PROGRAM": program("ninja"),
            "Python_EXECUTABLE": sys.executable,
            "VISIONZIP_CUDA_ARCHS": os.environ.get("VISIONZIP_CUDA_ARCHS", ""),
            "VISIONZIP_WITH_CUDA": os.environ.get("VISIONZIP_WITH_CUDA", "AUTO"),
        }
        # Except this, which changes no byte of the result.
        if "VISIONZIP_WERROR" in os.environ:
            options["VISIONZIP_WERROR"] = os.environ["VISIONZIP_WERROR"]
        definitions = [f"-D{name}={value}" for name, value in options.items()]
        execute(cmake, "-S", ROOT, "-B", build, "-G", "Ninja", *definitions)
        execute(cmake, "--build", build)
        execute(cmake, "--install", build, "--prefix", package)


setup(license="Apache-2.0", ext_modules=[Extension("visionzip_ext._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
