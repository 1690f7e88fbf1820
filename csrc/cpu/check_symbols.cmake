# cmake -DNM= -DOBJECTS= -DFATAL= -DENABLED= -P check_symbols.cmake
#
# Fails (FATAL) or warns when a kernel object defines a weak symbol outside namespace
# thalweg::<instruction set>. Only optimized objects are meaningful (ENABLED).
if(NOT ENABLED OR NOT NM)
  return()
endif()

set(strays "")
foreach(object IN LISTS OBJECTS)
  execute_process(COMMAND "${NM}" --defined-only "${object}"
    OUTPUT_VARIABLE symbols COMMAND_ERROR_IS_FATAL ANY)
  string(REGEX MATCHALL "[0-9a-fA-F]+ [WVu] [^\n]+" weak "${symbols}")
  foreach(line IN LISTS weak)
    string(REGEX REPLACE "^[0-9a-fA-F]+ [WVu] " "" symbol "${line}")
    # A mangled name that mentions the namespace anywhere differs between instruction sets.
    if(NOT symbol MATCHES "^_Z.*[0-9](x86_64_)?(baseline|v3|v4|v4_bf16)" AND NOT symbol MATCHES "^DW\\.ref\\.")
      cmake_path(GET object FILENAME name)
      list(APPEND strays "  ${name}: ${symbol}")
    endif()
  endforeach()
endforeach()

if(strays)
  list(REMOVE_DUPLICATES strays)
  list(JOIN strays "\n" text)
  if(FATAL)
    set(severity FATAL_ERROR)
  else()
    set(severity WARNING)
  endif()
  message(${severity} "Weak symbols outside the instruction-set namespace:\n${text}")
endif()
