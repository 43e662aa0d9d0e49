// The parts of the native module that stand in files of their own.
#pragma once

#include <nanobind/nanobind.h>

namespace binarize {

void bind_schedule(nanobind::module_& module);

}  // namespace binarize
