# Every package the product needs, as one interface target each. Configuration stops with the
# Debian package to install where one is missing.
find_package(PkgConfig REQUIRED)
find_package(MPI REQUIRED COMPONENTS C)
find_package(OpenMP REQUIRED COMPONENTS C)

function(need_pkg target module package)
  pkg_check_modules(${target} QUIET IMPORTED_TARGET ${module})
  if(NOT ${target}_FOUND)
    message(FATAL_ERROR "${module} not found: install ${package}")
  endif()
  add_library(dep_${target} INTERFACE)
  target_link_libraries(dep_${target} INTERFACE PkgConfig::${target})
  set(${target}_VERSION ${${target}_VERSION} PARENT_SCOPE)
endfunction()

need_pkg(json jansson libjansson-dev)
need_pkg(yaml yaml-0.1 libyaml-dev)
need_pkg(hash libcrypto libssl-dev)
need_pkg(hwloc hwloc libhwloc-dev)
need_pkg(pcre2 libpcre2-8 libpcre2-dev)
need_pkg(utf8proc libutf8proc libutf8proc-dev)
need_pkg(archive libarchive libarchive-dev)
# Debian's CMake file of ScaLAPACK names a path that does not exist; its pkg-config file is right.
need_pkg(scalapack scalapack-openmpi libscalapack-openmpi-dev)

if(hwloc_VERSION VERSION_LESS 2.7.1)
  message(WARNING "hwloc ${hwloc_VERSION}: Slurm warns of versions before 2.7.1")
endif()

find_library(OPENBLAS_LIBRARY openblas)
find_path(OPENBLAS_INCLUDE cblas.h PATH_SUFFIXES openblas openblas-pthread)
if(NOT OPENBLAS_LIBRARY OR NOT OPENBLAS_INCLUDE)
  message(FATAL_ERROR "OpenBLAS not found: install libopenblas-pthread-dev")
endif()
add_library(dep_blas INTERFACE)
target_link_libraries(dep_blas INTERFACE ${OPENBLAS_LIBRARY})
target_include_directories(dep_blas INTERFACE ${OPENBLAS_INCLUDE})

# oneDNN's own CMake file asks for OpenCL; the library alone does not. Without oneDNN the bf16
# products run through OpenBLAS in fp32.
find_library(DNNL_LIBRARY dnnl)
find_path(DNNL_INCLUDE oneapi/dnnl/dnnl.h)
add_library(dep_dnnl INTERFACE)
if(DNNL_LIBRARY AND DNNL_INCLUDE)
  set(SPINSHARD_HAVE_DNNL 1)
  target_link_libraries(dep_dnnl INTERFACE ${DNNL_LIBRARY})
  target_include_directories(dep_dnnl INTERFACE ${DNNL_INCLUDE})
else()
  set(SPINSHARD_HAVE_DNNL 0)
  message(WARNING "oneDNN not found (libdnnl-dev): bf16 products will run in fp32")
endif()
