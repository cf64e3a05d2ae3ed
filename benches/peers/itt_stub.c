// oneCCL's static CPU library refers to tracing hooks that its package does not ship. They are
// function pointers; null means that nobody traces.
#define HOOK(name) void *__itt_##name##_ptr__3_0 = 0;
HOOK(domain_create) HOOK(event_create) HOOK(event_end) HOOK(event_start) HOOK(metadata_add)
HOOK(string_handle_create) HOOK(task_begin) HOOK(task_end) HOOK(thread_set_name)
