#!/usr/bin/env bash
# Installs what C and C++ programs need: tools/install.sh PREFIX [arguments for cargo build, such as --no-default-features]
#
#   include/   eesd.h, and eesd.hpp for C++17
#   lib/       libeesd.a, libeesd.so
#   lib/pkgconfig/eesd.pc, lib/cmake/eesd/: for pkg-config and for find_package(eesd)
#
# PREFIX may be moved afterwards: nothing in it names its place.
set -euo pipefail
[ $# -ge 1 ] || { sed -n '2,3p' "$0" >&2; exit 2; }
mkdir -p "$1"
prefix=$(cd "$1" && pwd)
shift
cd "$(dirname "$0")/.."

cargo build --release --lib "$@"
built=${CARGO_TARGET_DIR:-target}/release
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
abi=$(sed -n 's/^#define EESD_ABI_VERSION //p' include/eesd.h)

# What a program that links libeesd.a links too. rustc says it while it makes a static library, and this one is quick: the
# engine links nothing that the standard library does not.
scratch=$(mktemp -d)
trap 'rm -r "$scratch"' EXIT
native=$(: | rustc --crate-type staticlib --print native-static-libs -o "$scratch/empty.a" - 2>&1 |
  sed -n 's/^note: native-static-libs: //p')
[ -n "$native" ] || { echo "rustc does not say which native libraries a static one needs" >&2; exit 1; }

lib=$prefix/lib
mkdir -p "$prefix/include" "$lib/pkgconfig" "$lib/cmake/eesd"
cp include/eesd.h include/eesd.hpp "$prefix/include/"
cp "$built/libeesd.a" "$lib/"
cp "$built/libeesd.so" "$lib/libeesd.so.$version"
strip --strip-debug "$lib/libeesd.a" "$lib/libeesd.so.$version"
ln -sf "libeesd.so.$version" "$lib/libeesd.so.$abi"
ln -sf "libeesd.so.$abi" "$lib/libeesd.so"

cat >"$lib/pkgconfig/eesd.pc" <<END
prefix=\${pcfiledir}/../..
includedir=\${prefix}/include
libdir=\${prefix}/lib

Name: eesd
Description: Early-exit speculative decoding of language models
Version: $version
Cflags: -I\${includedir}
Libs: -L\${libdir} -leesd
Libs.private: $native
END

cat >"$lib/cmake/eesd/eesdConfig.cmake" <<END
# eesd::static and eesd::shared; static brings the libraries that rustc's code needs.
get_filename_component(_eesd_prefix "\${CMAKE_CURRENT_LIST_DIR}/../../.." ABSOLUTE)
foreach(_eesd_kind static shared)
  if(TARGET eesd::\${_eesd_kind})
    continue()
  endif()
  string(TOUPPER \${_eesd_kind} _eesd_upper)
  add_library(eesd::\${_eesd_kind} \${_eesd_upper} IMPORTED)
  set_target_properties(eesd::\${_eesd_kind} PROPERTIES INTERFACE_INCLUDE_DIRECTORIES "\${_eesd_prefix}/include")
endforeach()
set_target_properties(eesd::static PROPERTIES
  IMPORTED_LOCATION "\${_eesd_prefix}/lib/libeesd.a"
  INTERFACE_LINK_LIBRARIES "${native// /;}")
set_target_properties(eesd::shared PROPERTIES
  IMPORTED_LOCATION "\${_eesd_prefix}/lib/libeesd.so"
  IMPORTED_SONAME "libeesd.so.$abi")
unset(_eesd_prefix)
unset(_eesd_kind)
unset(_eesd_upper)
END

cat >"$lib/cmake/eesd/eesdConfigVersion.cmake" <<END
# A version fits where its first two numbers are those asked for: before 1.0 the second one may break programs.
set(PACKAGE_VERSION "$version")
set(PACKAGE_VERSION_COMPATIBLE FALSE)
if("\${PACKAGE_FIND_VERSION_MAJOR}.\${PACKAGE_FIND_VERSION_MINOR}" STREQUAL "${version%.*}"
   AND NOT PACKAGE_FIND_VERSION VERSION_GREATER PACKAGE_VERSION)
  set(PACKAGE_VERSION_COMPATIBLE TRUE)
endif()
if(PACKAGE_FIND_VERSION VERSION_EQUAL PACKAGE_VERSION)
  set(PACKAGE_VERSION_EXACT TRUE)
endif()
END
echo "installed eesd $version to $prefix"
