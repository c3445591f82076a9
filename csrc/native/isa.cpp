// The same source as in _C, compiled a second time: the two modules share no object file.
#include "cpu/isa.cpp"
