// What the library says about itself and the machine behind the C interface.
#include "api/convert.h"
#include "api/guard.h"
#include "core/device.h"
#include "core/processor.h"
#include "core/thread_pool.h"

const char* tw_version(void) { return TW_VERSION_STRING; }

int32_t tw_default_threads(void) {
  int32_t threads = 1;
  thalweg::api::guarded([&] { threads = thalweg::ThreadPool::default_threads(); });
  return threads;
}

int32_t tw_cuda_available(void) { return thalweg::cuda_available() ? 1 : 0; }

tw_status tw_describe_system(char** text) {
  using namespace thalweg;
  return api::guarded([&] {
    api::required(text, "tw_describe_system", "text") = api::to_c_string(
        concat("thalweg: ", TW_VERSION_STRING, "\nprocessor: ", processor_name(),
               "\ninstruction set: ", instruction_set_name(selected_instruction_set()), " (of ",
               instruction_set_name(detect_instruction_set()),
               ")\nthreads: ", ThreadPool::default_threads(), "\n", cuda_report()));
  });
}
