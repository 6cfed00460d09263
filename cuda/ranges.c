// Ranges on the timeline of a profiler (NVTX 3). Its functions are inline: they look for a profiler once, and
// without one return at once. See src/profile.rs.
#include <nvtx3/nvToolsExt.h>

void eesd_push_range(const char* name) { nvtxRangePushA(name); }

// A range with a number, as of a layer: the profiler shows it beside the name.
void eesd_push_numbered_range(const char* name, unsigned long long number) {
  nvtxEventAttributes_t range = {0};
  range.version = NVTX_VERSION;
  range.size = NVTX_EVENT_ATTRIB_STRUCT_SIZE;
  range.messageType = NVTX_MESSAGE_TYPE_ASCII;
  range.message.ascii = name;
  range.payloadType = NVTX_PAYLOAD_TYPE_UNSIGNED_INT64;
  range.payload.ullValue = number;
  nvtxRangePushEx(&range);
}

void eesd_pop_range(void) { nvtxRangePop(); }
