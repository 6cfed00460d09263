#!/usr/bin/env bash
# Installs what C and C++ programs need: tools/install.sh PREFIX [arguments for cargo build, such as --no-default-features]
#
#   include/   eesd.h, and eesd.hpp for C++17
#   lib/       libeesd.a, libeesd.so
#   lib/pkgconfig/eesd.pc, lib/cmake/eesd/: for pkg-config and for find_package(eesd)
#   share/doc/eesd/, share/eesd/examples/: docs, programs to begin with
#
# PREFIX may be moved afterwards: nothing in it names its place.
set -euo pipefail
[ $# -ge 1 ] || { sed -n '2p' "$0" >&2; exit 2; }
mkdir -p "$1"
prefix=$(cd "$1" && pwd)
shift
cd "$(dirname "$0")/.."

version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
abi=$(sed -n 's/^#define EESD_ABI_VERSION //p' include/eesd.h)

# Not in Cargo.toml: beside these two kinds, cargo gives the rlib one name for all features, and
# whoever tests and builds in turns compiles the library each time.
# Programs ask for the interface that they were linked with, by the soname. What crates that this one uses would export is
# nobody's.
log=$(mktemp)
trap 'rm "$log"' EXIT
cargo rustc --release --lib --crate-type staticlib --crate-type cdylib "$@" -- \
  -C link-arg=-Wl,-soname,"libeesd.so.$abi" -C link-arg=-Wl,--exclude-libs,ALL --print native-static-libs 2>&1 | tee "$log" >&2
built=${CARGO_TARGET_DIR:-target}/release
# What a program that links libeesd.a links too.
native=$(sed -n 's/.*note: native-static-libs: //p' "$log" | tail -1)
[ -n "$native" ] || { echo "rustc does not say which native libraries the static one needs" >&2; exit 1; }

lib=$prefix/lib
mkdir -p "$prefix/include" "$lib/pkgconfig" "$lib/cmake/eesd" "$prefix/share/doc/eesd" "$prefix/share/eesd/examples"
cp include/eesd.h include/eesd.hpp "$prefix/include/"
cp docs/* "$prefix/share/doc/eesd/"
cp -r examples/cpp-host "$prefix/share/eesd/examples/"
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
