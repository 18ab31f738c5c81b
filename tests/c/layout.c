/*
 * The layout of every structure of the interface, on both widths. The same numbers stand in
 * ffi/src/layout.rs, where the Rust compiler checks its side.
 */
#include <stddef.h>
#include <stdint.h>

#include "libdmce.h"

#if UINTPTR_MAX > UINT32_MAX
#define BY_WIDTH(on_64, on_32) (on_64)
#else
#define BY_WIDTH(on_64, on_32) (on_32)
#endif

#define SIZE(type, bytes) _Static_assert(sizeof(type) == (bytes), "size of " #type)
#define AT(type, field, offset) \
    _Static_assert(offsetof(type, field) == (offset), "offset of " #type "." #field)

_Static_assert(sizeof(dmce_addr_t) == 8 && (dmce_addr_t)-1 > 0, "an address is an uint64_t");
_Static_assert(sizeof(dmce_status_t) == 4 && (dmce_status_t)-1 < 0, "a status is an int32_t");

SIZE(dmce_options_t, BY_WIDTH(64, 56));
AT(dmce_options_t, size, 0);
AT(dmce_options_t, abi_version, 4);
AT(dmce_options_t, reserve_bytes, 8);
AT(dmce_options_t, window_budget, 16);
AT(dmce_options_t, cache_bytes, 24);
AT(dmce_options_t, copies, 32);
AT(dmce_options_t, timeout_ms, 36);
AT(dmce_options_t, flags, 40);
AT(dmce_options_t, cache_mode, 44);
AT(dmce_options_t, socket, 48);
AT(dmce_options_t, name, BY_WIDTH(56, 52));

SIZE(dmce_event_t, 24);
AT(dmce_event_t, size, 0);
AT(dmce_event_t, kind, 4);
AT(dmce_event_t, addr, 8);
AT(dmce_event_t, bytes, 16);

SIZE(dmce_alloc_options_t, BY_WIDTH(40, 36));
AT(dmce_alloc_options_t, size, 0);
AT(dmce_alloc_options_t, copies, 4);
AT(dmce_alloc_options_t, page_size, 8);
AT(dmce_alloc_options_t, align, 12);
AT(dmce_alloc_options_t, timeout_ms, 16);
AT(dmce_alloc_options_t, flags, 20);
AT(dmce_alloc_options_t, policy, 24);
AT(dmce_alloc_options_t, numa_node, 28);
AT(dmce_alloc_options_t, label, 32);

SIZE(dmce_region_options_t, 32);
AT(dmce_region_options_t, size, 0);
AT(dmce_region_options_t, mode, 4);
AT(dmce_region_options_t, base_pointer, 8);
AT(dmce_region_options_t, copies, 16);
AT(dmce_region_options_t, page_size, 20);
AT(dmce_region_options_t, flags, 24);
AT(dmce_region_options_t, reserved, 28);

SIZE(dmce_region_info_t, 40);
AT(dmce_region_info_t, size, 0);
AT(dmce_region_info_t, copies, 4);
AT(dmce_region_info_t, region_size, 8);
AT(dmce_region_info_t, base_pointer, 16);
AT(dmce_region_info_t, first, 24);
AT(dmce_region_info_t, primary_daemon, 32);
AT(dmce_region_info_t, mirror_daemon, 36);

SIZE(dmce_stat_t, 80);
AT(dmce_stat_t, size, 0);
AT(dmce_stat_t, server_bits, 4);
AT(dmce_stat_t, block_bits, 8);
AT(dmce_stat_t, cell_bits, 12);
AT(dmce_stat_t, reserved_bytes, 16);
AT(dmce_stat_t, allocated_bytes, 24);
AT(dmce_stat_t, committed_bytes, 32);
AT(dmce_stat_t, quota_bytes, 40);
AT(dmce_stat_t, blocks, 48);
AT(dmce_stat_t, windows, 56);
AT(dmce_stat_t, window_bytes, 64);
AT(dmce_stat_t, epoch, 72);

/* The numbers of the codes are in programs that were compiled before. */
_Static_assert(DMCE_OK == 0 && DMCE_E_INVALID == 1 && DMCE_E_ADDRESS == 2, "");
_Static_assert(DMCE_E_NOSPACE == 3 && DMCE_E_QUOTA == 4 && DMCE_E_DENIED == 5, "");
_Static_assert(DMCE_E_NOTFOUND == 6 && DMCE_E_EXISTS == 7 && DMCE_E_BUSY == 8, "");
_Static_assert(DMCE_E_TIMEOUT == 9 && DMCE_E_LOST == 10 && DMCE_E_NOCOPY == 11, "");
_Static_assert(DMCE_E_OWNER_DIED == 12 && DMCE_E_UNAVAILABLE == 13 && DMCE_E_VERSION == 14, "");
_Static_assert(DMCE_E_CORRUPT == 15 && DMCE_E_FORKED == 16 && DMCE_E_CLOSED == 17, "");
_Static_assert(DMCE_E_NOMEM == 18 && DMCE_E_IO == 19 && DMCE_E_UNSUPPORTED == 20, "");
_Static_assert(DMCE_E_INTERNAL == 21, "");

/* So are those of the flags. */
_Static_assert(DMCE_ACCEPT_PARTIAL == 1 && DMCE_SPAWN == 2 && DMCE_MESSAGE_PATH == 4, "");
_Static_assert(DMCE_VERIFY == 8 && DMCE_NO_THREAD == 16, "");
_Static_assert(DMCE_CACHE_NONE == 0 && DMCE_CACHE_THROUGH == 1 && DMCE_CACHE_BACK == 2, "");
_Static_assert(DMCE_READ == 1 && DMCE_WRITE == 2 && DMCE_WAIT == 1, "");
_Static_assert(DMCE_NOWAIT == 1 && DMCE_QUEUE == 2 && DMCE_TAKE_DIRTY == 4, "");
_Static_assert(DMCE_PM_ANY == 0 && DMCE_PM_PRIMARY == 1, "");
_Static_assert(DMCE_PM_MIRROR == 2 && DMCE_PM_BOTH == 3, "");
_Static_assert(DMCE_EVENT_GRANTED == 1 && DMCE_EVENT_PRESSURE == 2, "");
_Static_assert(DMCE_EVENT_COPY_LOST == 3 && DMCE_EVENT_COPY_RESTORED == 4, "");
_Static_assert(DMCE_EVENT_LOST == 5, "");

int main(void)
{
    return dmce_version() == DMCE_VERSION ? 0 : 1;
}
