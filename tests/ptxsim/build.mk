# The PTX simulator and what links against it, all below build/ptxsim. From the repository's root:
#
#   make -f tests/ptxsim/build.mk            build/ptxsim/libptxsim.so: simulator and stand-in libcudart
#   make -f tests/ptxsim/build.mk cuda       the package's kernels (csrc/cuda) as host objects with PTX inside
#   make -f tests/ptxsim/build.mk clean-ptxsim
#
# Who includes this file gets NVCC80, NVCC90, NVCC_PACKAGE, CUDA_INCLUDE, PTXSIM_LIBRARY, PTXSIM_CUDA_OBJECTS and the pattern rules.

PTXSIM := $(patsubst %/,%,$(dir $(lastword $(MAKEFILE_LIST))))
OUT := build/ptxsim
CXX ?= g++
NVCC ?= nvcc

# The nvcc in PATH may be a wrapper elsewhere: ask it where its toolkit is.
CUDA_HOME ?= $(shell $(NVCC) --dryrun -x cu -c /dev/null 2>&1 | sed -n 's/.* _HERE_=\(.*\)\/bin$$/\1/p' | head -n 1)
CUDA_INCLUDE := -isystem $(CUDA_HOME)/include -isystem $(CUDA_HOME)/include/cccl

# No contraction and no fast-math: the simulator's arithmetic is the arithmetic under test.
PTXSIM_CXXFLAGS := -std=c++20 -O3 -g1 -fPIC -Wall -Wextra -fvisibility=hidden -ffp-contract=off -fno-math-errno \
    -fno-trapping-math -Wno-restrict $(if $(shell grep -m1 -o avx2 /proc/cpuinfo),-mavx2 -mfma)

# What ships is PTX for compute_80 and compute_90 (Hopper's own gemm: compute_90a); the simulator reads what suits
# its `capability` from the fat binary, which must therefore hold it uncompressed. The machine code beside it shows
# that ptxas accepts the PTX too.
NVCC_COMMON := $(NVCC) -std=c++20 -O3 -fmad=false --no-compress -cudart none -Xcompiler -fPIC -MMD -MP
NVCC80 := $(NVCC_COMMON) -gencode 'arch=compute_80,code=[compute_80,sm_80]'
NVCC_PACKAGE := $(NVCC_COMMON) -gencode arch=compute_80,code=compute_80 -gencode arch=compute_90,code=compute_90
NVCC90 := $(NVCC_COMMON) -gencode 'arch=compute_90a,code=[compute_90a,sm_90a]'

PTXSIM_OBJECTS := $(patsubst $(PTXSIM)/%.cpp,$(OUT)/sim/%.o,$(wildcard $(PTXSIM)/*.cpp))
PTXSIM_LIBRARY := $(OUT)/libptxsim.so
PTXSIM_CUDA_OBJECTS := $(patsubst csrc/cuda/%.cu,$(OUT)/cuda/%.o,$(wildcard csrc/cuda/*.cu csrc/cuda/hopper/*.cu))

.PHONY: ptxsim cuda clean-ptxsim
ptxsim: $(PTXSIM_LIBRARY)
cuda: $(PTXSIM_CUDA_OBJECTS)

# The symbols have a version, so that what links against them binds to nothing else: a torch with CUDA has put
# the real libcudart, with the same names, before every library that is loaded later.
$(PTXSIM_LIBRARY): $(PTXSIM_OBJECTS) $(PTXSIM)/build.mk
	$(CXX) -shared -Wl,-soname,libptxsim.so -Wl,--default-symver -Wl,--no-undefined -o $@ $(PTXSIM_OBJECTS)

$(OUT)/sim/%.o: $(PTXSIM)/%.cpp
	@mkdir -p $(@D)
	$(CXX) $(PTXSIM_CXXFLAGS) $(CUDA_INCLUDE) -MMD -MP -c $< -o $@

# The package's launchers take -DDSE_SIMULATOR like the operators registered above them.
$(OUT)/cuda/%.o: csrc/cuda/%.cu
	@mkdir -p $(@D)
	$(if $(findstring /hopper/,$<),$(NVCC90),$(NVCC_PACKAGE)) -DDSE_SIMULATOR -Icsrc -c $< -o $@

# Test programs: host code and kernels in one shared object, as an extension has them. NAME_sm90.cu is for Hopper.
$(OUT)/kernels/%.so: $(PTXSIM)/kernels/%.cu $(PTXSIM_LIBRARY)
	@mkdir -p $(@D)
	$(if $(findstring _sm90,$*),$(NVCC90),$(NVCC80)) -I$(PTXSIM) -c $< -o $(@:.so=.o)
	$(CXX) -shared -o $@ $(@:.so=.o) -L$(OUT) -lptxsim -Wl,-rpath,'$$ORIGIN/..'

clean-ptxsim:
	rm -rf $(OUT)

-include $(wildcard $(OUT)/*/*.d $(OUT)/*/*/*.d)
