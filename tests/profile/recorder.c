/* Stands in for a profiler: writes every range to the file that RANGES_FILE names, "push NAME", "push NAME NUMBER"
   or "pop", in order. NVTX loads it where NVTX_INJECTION64_PATH points to it. */
#include <nvtx3/nvToolsExt.h>
#include <stdio.h>
#include <stdlib.h>

static FILE* file;

static int push(const char* name) { return fprintf(file, "push %s\n", name); }

static int push_event(const nvtxEventAttributes_t* range) {
  return fprintf(file, "push %s %llu\n", range->message.ascii, (unsigned long long)range->payload.ullValue);
}

static int pop(void) { return fprintf(file, "pop\n"); }

int InitializeInjectionNvtx2(NvtxGetExportTableFunc_t export_table) {
  const NvtxExportTableCallbacks* callbacks = (const NvtxExportTableCallbacks*)export_table(NVTX_ETID_CALLBACKS);
  NvtxFunctionTable table;
  unsigned size;
  const char* path = getenv("RANGES_FILE");
  if (!path || !(file = fopen(path, "w"))) return 0;
  if (!callbacks || !callbacks->GetModuleFunctionTable(NVTX_CB_MODULE_CORE, &table, &size)) return 0;
  *table[NVTX_CBID_CORE_RangePushA] = (NvtxFunctionPointer)push;
  *table[NVTX_CBID_CORE_RangePushEx] = (NvtxFunctionPointer)push_event;
  *table[NVTX_CBID_CORE_RangePop] = (NvtxFunctionPointer)pop;
  return 1;
}
