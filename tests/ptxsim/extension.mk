# The package's CUDA operators for the simulator: csrc/cuda and csrc/ops/*_cuda.cpp in one library, registered as
# torch.ops.deepseek_ext_sim. From the repository's root, with the Python whose torch is used:
#
#   make -f tests/ptxsim/extension.mk PYTHON=.venv/bin/python      build/ptxsim/_C_sim.so

.DEFAULT_GOAL := extension
include $(dir $(lastword $(MAKEFILE_LIST)))build.mk

PYTHON ?= python3
EXTENSION := $(OUT)/_C_sim.so
EXTENSION_OBJECTS := $(patsubst csrc/ops/%.cpp,$(OUT)/ops/%.o,$(filter-out %/module_cuda.cpp,$(wildcard csrc/ops/*_cuda.cpp)))
TORCH := $(shell $(PYTHON) -c 'import torch; print(torch.__path__[0])')

# As setup.py compiles them for a GPU.
EXTENSION_CXXFLAGS := -std=c++20 -O3 -fPIC -Wall -Wextra -fvisibility=hidden -ffp-contract=off -fno-math-errno \
    -DDSE_SIMULATOR -DTORCH_TARGET_VERSION=0x020b000000000000 -Icsrc -I$(PTXSIM) $(CUDA_INCLUDE) \
    -isystem $(TORCH)/include -isystem $(TORCH)/include/torch/csrc/api/include

.PHONY: extension
extension: $(EXTENSION)

$(OUT)/ops/%.o: csrc/ops/%.cpp
	@mkdir -p $(@D)
	$(CXX) $(EXTENSION_CXXFLAGS) -MMD -MP -c $< -o $@

$(EXTENSION): $(EXTENSION_OBJECTS) $(PTXSIM_CUDA_OBJECTS) $(PTXSIM_LIBRARY)
	$(CXX) -shared -o $@ $(EXTENSION_OBJECTS) $(PTXSIM_CUDA_OBJECTS) -L$(dir $(PTXSIM_LIBRARY)) -lptxsim -Wl,-rpath,'$$ORIGIN' \
	    -L$(TORCH)/lib -ltorch_cpu -lc10
