#define VISIONZIP_ISA baseline
#include "cpu/kernels/kernels_body.h"
