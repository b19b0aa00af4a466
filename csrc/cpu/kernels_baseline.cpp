#define VISIONZIP_ISA baseline
#include "kernels_body.h"
