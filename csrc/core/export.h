// Marks the internal symbols that libthalweg shares with the Python module of the same build.
//
// Everything is compiled with hidden visibility. A class or function that the bindings use out of
// line carries TW_INTERNAL_API; it is exported under the version node THALWEG_INTERNAL (see
// api/exports.map), which promises nothing to anybody else. Header-only code needs no mark.
#pragma once

#if !defined(_WIN32)
#define TW_INTERNAL_API __attribute__((visibility("default")))
#elif defined(TW_BUILDING_LIBRARY)
#define TW_INTERNAL_API __declspec(dllexport)
#else
#define TW_INTERNAL_API __declspec(dllimport)
#endif
