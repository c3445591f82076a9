// The modules with CUDA kernels (setup.py names each): importing one adds its kernels to the library that _C
// opened.
#include <Python.h>

#define DSE_JOIN(a, b) a##b
#define DSE_INIT(name) DSE_JOIN(PyInit_, name)
#define DSE_TEXT(name) #name
#define DSE_NAME(name) DSE_TEXT(name)

extern "C" __attribute__((visibility("default"))) PyObject* DSE_INIT(TORCH_EXTENSION_NAME)(void) {
    static PyModuleDef definition = {PyModuleDef_HEAD_INIT,
                                     DSE_NAME(TORCH_EXTENSION_NAME),
                                     nullptr,
                                     -1,
                                     nullptr,
                                     nullptr,
                                     nullptr,
                                     nullptr,
                                     nullptr};
    return PyModule_Create(&definition);
}
