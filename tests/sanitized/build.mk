# build/sanitized/run from csrc/cpu/*.cpp and tests/sanitized/*.cpp; what is up to date is not rebuilt.
CXX ?= g++
OUT := build/sanitized
SOURCES := $(wildcard csrc/cpu/*.cpp tests/sanitized/*.cpp)
OBJECTS := $(SOURCES:%.cpp=$(OUT)/%.o)
SANITIZE := -fsanitize=address,undefined -fno-sanitize-recover=all
FLAGS := -std=c++20 -O1 -g1 -ffp-contract=off -fno-omit-frame-pointer -Wall -Wextra -Icsrc $(SANITIZE)

$(OUT)/run: $(OBJECTS)
	$(CXX) $(SANITIZE) -pthread $^ -o $@

$(OUT)/%.o: %.cpp tests/sanitized/build.mk
	@mkdir -p $(@D)
	@echo "sanitized: $<"
	$(CXX) $(FLAGS) -MMD -MP -c $< -o $@

-include $(OBJECTS:.o=.d)
