// Compiled once for every instruction set, with its flags, NMS_ISA (a name) and NMS_BYTES (how
// wide its vectors are).
#include "elementwise.h"
#include "kernels.h"
#include "multiply.h"
#include "project.h"

const Kernels NMS_ISA = {project, add_term, multiply, lanes};
