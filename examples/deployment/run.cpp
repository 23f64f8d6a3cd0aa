// A saved LSTM in a program without Python, its state carried from call to call. deploy.py saves, compiles and runs it.
//
// usage: run FILE FOLDER STEPS ROWS INPUTS LAYERS HIDDEN PIECE
// FILE ends in .pt2 (an AOTInductor package) or in .pt (TorchScript). FOLDER has the numbers that deploy.py wrote.
#include <ATen/ATen.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>  // for AOTInductor
#include <torch/csrc/jit/serialization/import.h>                    // for TorchScript

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <memory>
#include <string>
#include <vector>

// x [B, T, I], h and c [L, B, H], is_init [B, T] -> output [B, T, H], h, c
using Program = std::function<std::vector<at::Tensor>(at::Tensor x, at::Tensor h, at::Tensor c, at::Tensor is_init)>;

Program aot_inductor(const std::string& path) {
    auto loader = std::make_shared<torch::inductor::AOTIModelPackageLoader>(path);
    return [loader](at::Tensor x, at::Tensor h, at::Tensor c, at::Tensor is_init) {
        return loader->run({x, h, c, is_init});
    };
}

Program torchscript(const std::string& path) {
    auto module = std::make_shared<torch::jit::Module>(torch::jit::load(path));
    return [module](at::Tensor x, at::Tensor h, at::Tensor c, at::Tensor is_init) {
        const auto found = module->forward({x, c10::ivalue::Tuple::create({h, c}), is_init}).toTuple();
        const auto state = found->elements()[1].toTuple();
        return std::vector<at::Tensor>{
            found->elements()[0].toTensor(), state->elements()[0].toTensor(), state->elements()[1].toTensor()};
    };
}

// float32 numbers in C order
at::Tensor read(const std::string& path, at::IntArrayRef shape) {
    at::Tensor value = at::empty(shape);
    std::ifstream file(path, std::ios::binary);
    if (!file.read(static_cast<char*>(value.data_ptr()), static_cast<std::streamsize>(value.nbytes()))) {
        std::fprintf(stderr, "cannot read %s\n", path.c_str());
        std::exit(1);
    }
    return value;
}

int main(int argc, char** argv) {
    if (argc != 9) {
        std::fprintf(stderr, "usage: %s FILE FOLDER STEPS ROWS INPUTS LAYERS HIDDEN PIECE\n", argv[0]);
        return 2;
    }
    const std::string path = argv[1], folder = argv[2];
    const int64_t T = std::atoll(argv[3]), B = std::atoll(argv[4]), I = std::atoll(argv[5]);
    const int64_t L = std::atoll(argv[6]), H = std::atoll(argv[7]), piece = std::atoll(argv[8]);
    const bool package = path.size() > 4 && path.substr(path.size() - 4) == ".pt2";

    c10::InferenceMode no_gradients;
    const Program program = package ? aot_inductor(path) : torchscript(path);
    const at::Tensor x = read(folder + "/x.bin", {B, T, I});
    const at::Tensor is_init = read(folder + "/is_init.bin", {B, T}) != 0;
    const at::Tensor expected = read(folder + "/expected.bin", {B, T, H});

    at::Tensor h = at::zeros({L, B, H}), c = at::zeros({L, B, H});
    std::vector<at::Tensor> outputs;
    for (int64_t t = 0; t < T; t += piece) {
        const int64_t stop = std::min(t + piece, T);
        const auto found = program(x.slice(1, t, stop).contiguous(), h, c, is_init.slice(1, t, stop).contiguous());
        outputs.push_back(found.at(0));
        h = found.at(1);
        c = found.at(2);
    }
    const double error = (at::cat(outputs, 1) - expected).abs().max().item<double>();
    const std::string name = path.substr(path.rfind('/') + 1);
    std::printf("%s, from C++: pieces of %lld: largest difference %.1e\n", name.c_str(),
                static_cast<long long>(piece), error);
    return error < 1e-5 ? 0 : 1;
}
