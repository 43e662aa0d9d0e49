// See avx512_vnni.h.
#include "avx512_vnni.h"

#include "conv2d.h"
#include "pack.h"

namespace binarize {

Status conv2d_avx512_vnni(const Conv2d& call) { return conv2d<Avx512Vnni>(call); }
Status pack_avx512_vnni(const Pack& call) { return pack<Avx512Vnni>(call); }

}  // namespace binarize
