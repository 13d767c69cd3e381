# The launcher that belongs to the MPI that the program is compiled with. Where two are installed, FindMPI may give one's
# compiler and the other's mpiexec: each rank would then believe that it is alone.

# launcher_kind(RESULT LAUNCHER): `openmpi` or `hydra`, as the launcher says; empty if it says neither, as srun does.
function(launcher_kind result launcher)
  execute_process(COMMAND ${launcher} --version OUTPUT_VARIABLE says ERROR_VARIABLE says)
  set(kind "")
  if(says MATCHES "OpenRTE|Open MPI|PRRTE|open-mpi")
    set(kind openmpi)
  elseif(says MATCHES "HYDRA|Hydra|Intel\\(R\\) MPI")
    set(kind hydra)
  endif()
  set(${result} "${kind}" PARENT_SCOPE)
endfunction()

# find_launcher(RESULT OPEN_MPI FOUND COMPILER): FOUND, unless it is the launcher of another kind of MPI than OPEN_MPI says;
# then one of the right kind beside the compiler or in PATH, under the names by which systems tell them apart. Without any,
# configuration stops.
function(find_launcher result open_mpi found compiler)
  set(wanted hydra)
  set(names mpiexec.hydra mpiexec.mpich mpiexec)
  if(open_mpi)
    set(wanted openmpi)
    set(names mpiexec.openmpi prterun orterun mpiexec)
  endif()
  if(found)
    launcher_kind(kind ${found})
    if(kind STREQUAL wanted OR kind STREQUAL "")
      set(${result} ${found} PARENT_SCOPE)
      return()
    endif()
  endif()
  get_filename_component(beside "${compiler}" DIRECTORY)
  foreach(name ${names})
    find_program(launcher_of_mpi NAMES ${name} HINTS ${beside})
    set(one ${launcher_of_mpi})
    unset(launcher_of_mpi CACHE)
    if(one)
      launcher_kind(kind ${one})
      if(kind STREQUAL wanted)
        message(STATUS "${found} is not the launcher of the MPI of ${compiler}: the tests use ${one}")
        set(${result} ${one} PARENT_SCOPE)
        return()
      endif()
    endif()
  endforeach()
  message(FATAL_ERROR "no launcher of the MPI that ${compiler} compiles for was found (${found} is another's): name it "
          "with -DMPIEXEC_EXECUTABLE=, or configure with -DSPINSHARD_TESTS=OFF.")
endfunction()
