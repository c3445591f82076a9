// The module _C_cuda: importing it adds each family's CUDA kernels to the library that _C opened.
#include <Python.h>

extern "C" __attribute__((visibility("default"))) PyObject* PyInit__C_cuda(void) {
    static PyModuleDef definition = {
        PyModuleDef_HEAD_INIT, "_C_cuda", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
    return PyModule_Create(&definition);
}
