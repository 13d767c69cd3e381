# Every library the product needs, as one interface target each, dep_NAME. Where one is not found
# configuration stops and names the library and the ways to give it.
find_package(PkgConfig REQUIRED)
find_package(MPI REQUIRED COMPONENTS C)
find_package(OpenMP REQUIRED COMPONENTS C)
include(CheckCSourceCompiles)
include(CheckFunctionExists)

# need_pkg(NAME MODULE LIBRARY DEBIAN): MODULE as pkg-config knows it.
function(need_pkg target module library package)
  pkg_check_modules(${target} QUIET IMPORTED_TARGET ${module})
  if(NOT ${target}_FOUND)
    message(FATAL_ERROR "${library} not found: pkg-config knows no ${module}. Install its development files "
            "(Debian and Ubuntu: ${package}), or name their folder in PKG_CONFIG_PATH or CMAKE_PREFIX_PATH.")
  endif()
  add_library(dep_${target} INTERFACE)
  target_link_libraries(dep_${target} INTERFACE PkgConfig::${target})
  set(${target}_VERSION ${${target}_VERSION} PARENT_SCOPE)
endfunction()

need_pkg(json jansson Jansson libjansson-dev)
need_pkg(yaml yaml-0.1 LibYAML libyaml-dev)
need_pkg(hash libcrypto OpenSSL libssl-dev)
need_pkg(hwloc hwloc hwloc libhwloc-dev)
need_pkg(pcre2 libpcre2-8 PCRE2 libpcre2-dev)
need_pkg(utf8proc libutf8proc utf8proc libutf8proc-dev)
need_pkg(archive libarchive libarchive libarchive-dev)
if(hwloc_VERSION VERSION_LESS 2.7.1)
  message(WARNING "hwloc ${hwloc_VERSION}: Slurm warns of versions before 2.7.1")
endif()

# BLAS and LAPACK: -DBLA_VENDOR or -DBLAS_LIBRARIES (and LAPACK_LIBRARIES) decide; else OpenBLAS, which
# holds both; else what FindBLAS finds. Of BLAS the C interface is called, which netlib keeps apart.
if(NOT BLA_VENDOR AND NOT BLAS_LIBRARIES)
  find_library(OPENBLAS_LIBRARY NAMES openblas openblasp)
endif()
add_library(dep_blas INTERFACE)
if(OPENBLAS_LIBRARY)
  set(SPINSHARD_BLAS OpenBLAS)
  target_link_libraries(dep_blas INTERFACE ${OPENBLAS_LIBRARY})
  set(blas_all ${OPENBLAS_LIBRARY})
else()
  find_package(BLAS)
  find_package(LAPACK)
  if(NOT BLAS_FOUND OR NOT LAPACK_FOUND)
    message(FATAL_ERROR "BLAS and LAPACK not found: install OpenBLAS (Debian and Ubuntu: libopenblas-pthread-dev), "
            "or name another with -DBLA_VENDOR= (Intel10_64lp, FLAME, AOCL_mt, ...) or with "
            "-DBLAS_LIBRARIES= and -DLAPACK_LIBRARIES=.")
  endif()
  list(GET BLAS_LIBRARIES 0 first)
  get_filename_component(SPINSHARD_BLAS "${first}" NAME_WE)
  string(REGEX REPLACE "^lib" "" SPINSHARD_BLAS "${SPINSHARD_BLAS}")
  set(blas_all ${LAPACK_LIBRARIES} ${BLAS_LIBRARIES})
  set(CMAKE_REQUIRED_LIBRARIES ${BLAS_LIBRARIES} ${BLAS_LINKER_FLAGS} m)
  check_function_exists(cblas_dgemm SPINSHARD_BLAS_HAS_CBLAS)
  if(NOT SPINSHARD_BLAS_HAS_CBLAS)
    find_library(CBLAS_LIBRARY NAMES cblas gslcblas)
    if(NOT CBLAS_LIBRARY)
      message(FATAL_ERROR "${BLAS_LIBRARIES} lacks the C interface: name a CBLAS with -DCBLAS_LIBRARY=.")
    endif()
    list(INSERT blas_all 0 ${CBLAS_LIBRARY})
  endif()
  target_link_libraries(dep_blas INTERFACE ${blas_all} ${BLAS_LINKER_FLAGS})
endif()

# ScaLAPACK must be the one built with the MPI at hand: -DSCALAPACK_LIBRARIES decides; else the library
# under the name that Debian gives it for this MPI, or under its own, in the folder that pkg-config knows
# or another; else what pkg-config says; else a CMake package (Debian's names a path that does not exist).
# The library goes before pkg-config because Debian's file for MPICH asks for the MPI that the system has
# chosen: the program would be linked with two.
set(CMAKE_REQUIRED_LIBRARIES MPI::MPI_C)
check_c_source_compiles("#include <mpi.h>
#ifndef OPEN_MPI
#error another
#endif
int main(void) { return 0; }" SPINSHARD_OPEN_MPI)
set(scalapack_own scalapack-mpich)
if(SPINSHARD_OPEN_MPI)
  set(scalapack_own scalapack-openmpi)
endif()
add_library(dep_scalapack INTERFACE)
if(SCALAPACK_LIBRARIES)
  set(scalapack_all ${SCALAPACK_LIBRARIES})
else()
  pkg_search_module(scalapack QUIET IMPORTED_TARGET ${scalapack_own} scalapack)
  find_library(SCALAPACK_LIBRARY NAMES ${scalapack_own} scalapack HINTS ${scalapack_LIBDIR})
  if(SCALAPACK_LIBRARY)
    set(scalapack_all ${SCALAPACK_LIBRARY})
  elseif(TARGET PkgConfig::scalapack)
    set(scalapack_all PkgConfig::scalapack)
  else()
    find_package(scalapack CONFIG QUIET)
    if(TARGET scalapack)
      set(scalapack_all scalapack)
    endif()
  endif()
endif()
set(CMAKE_REQUIRED_LIBRARIES ${scalapack_all} ${blas_all} MPI::MPI_C m)
if(scalapack_all)
  check_function_exists(pdgemm_ SPINSHARD_SCALAPACK_LINKS)
endif()
unset(CMAKE_REQUIRED_LIBRARIES)
if(NOT scalapack_all OR NOT SPINSHARD_SCALAPACK_LINKS)
  message(FATAL_ERROR "ScaLAPACK not found, or it does not link (${scalapack_all}): install the one for this MPI "
          "(Debian and Ubuntu: lib${scalapack_own}-dev), or name it with -DSCALAPACK_LIBRARIES=\"FILE;FILE\" "
          "(MKL: mkl_scalapack_lp64 and the BLACS for this MPI; LibSci: none is needed, -DSCALAPACK_LIBRARIES=m).")
endif()
if(NOT scalapack_VERSION)
  set(scalapack_VERSION "version not told")
endif()
target_link_libraries(dep_scalapack INTERFACE ${scalapack_all} dep_blas)

# oneDNN 2 or 3. Its own CMake file asks for OpenCL; the library alone does not. Without oneDNN the bf16
# products run in fp32.
find_library(DNNL_LIBRARY dnnl)
find_path(DNNL_INCLUDE oneapi/dnnl/dnnl.h)
add_library(dep_dnnl INTERFACE)
set(SPINSHARD_DNNL 0)
if(DNNL_LIBRARY AND DNNL_INCLUDE)
  file(STRINGS ${DNNL_INCLUDE}/oneapi/dnnl/dnnl_version.h version REGEX "^#define DNNL_VERSION_MAJOR +[0-9]+")
  string(REGEX MATCH "[0-9]+$" version "${version}")
  if(version EQUAL 2 OR version EQUAL 3)
    set(SPINSHARD_DNNL ${version})
    target_link_libraries(dep_dnnl INTERFACE ${DNNL_LIBRARY})
    target_include_directories(dep_dnnl INTERFACE ${DNNL_INCLUDE})
  else()
    message(WARNING "oneDNN ${version} is not known, versions 2 and 3 are: bf16 products will run in fp32")
  endif()
else()
  message(WARNING "oneDNN not found (Debian and Ubuntu: libdnnl-dev): bf16 products will run in fp32, which halves the "
          "speed of the forward pass on CPUs with AMX")
endif()
