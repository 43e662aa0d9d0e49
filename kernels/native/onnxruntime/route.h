// Which form operands come in, and which level multiplies them: as binarize.passes.route and binarize.kernels.dispatch
// choose, and with their environment variables.
#pragma once

#include "../dispatch.h"
#include "host.h"

namespace binarize::ort {

// Products that all readers of a tensor of codes make for each of its pixels, by form. The producer and every reader
// are given the same two numbers, so that they agree without seeing each other.
struct Work {
  int64_t planes, codes;
};

Work work_of(const Node& node, const char* attribute);

// Whether a tensor of that work comes as codes, a byte each, rather than as planes of bits.
bool as_codes(const Node& node, Work work);

const Level& multiplier(const Node& node, bool codes);
const Level& packer(const Node& node);

}  // namespace binarize::ort
