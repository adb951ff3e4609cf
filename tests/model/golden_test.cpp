// Greedy text and logits of the demo models against Hugging Face Transformers (golden.json).
#include "tests/model/tales.h"

namespace kivi {

TEST_CASE("Greedy text equals Transformers', token by token") {
  const std::string name = GENERATE("tales-llama", "tales-mistral", "tales-falcon");
  CAPTURE(name);
  const Golden golden = read_golden(name);
  EngineConfig config = test_config(name, "fp16");
  config.tokenizer =
      model_folder("tales-llama");  // Falcon's kind is not built; ids are enough here
  const auto loaded = load_or_fail(config);
  const Output output = run_one(*loaded->engine, greedy_request(golden.prompt, 64));
  CHECK(output.ids == golden.greedy);
}

}  // namespace kivi
