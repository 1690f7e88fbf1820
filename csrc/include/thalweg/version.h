/* The version of thalweg: the only place where it is written. The build and the Python package read
 * these three lines. */
#ifndef THALWEG_VERSION_H_
#define THALWEG_VERSION_H_

#define TW_VERSION_MAJOR 0
#define TW_VERSION_MINOR 1
#define TW_VERSION_PATCH 0

#define TW_VERSION_TEXT_OF(x) #x
#define TW_VERSION_JOIN(major, minor, patch) \
  TW_VERSION_TEXT_OF(major) "." TW_VERSION_TEXT_OF(minor) "." TW_VERSION_TEXT_OF(patch)
#define TW_VERSION_STRING TW_VERSION_JOIN(TW_VERSION_MAJOR, TW_VERSION_MINOR, TW_VERSION_PATCH)

#endif /* THALWEG_VERSION_H_ */
