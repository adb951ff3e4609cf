// `kivi eval`: perplexity of a model on a text file, for one or several formats of the key-value
// store, as a table and as JSON.
#pragma once

namespace kivi {

// argv[0] is the command's name, argv[1] the model folder. Returns the process's exit status.
int run_eval(int argc, char** argv);

}  // namespace kivi
