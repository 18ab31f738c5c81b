//! Addresses that came from C, a message or shared memory, against arithmetic in 128 bits.

use arbitrary::{Result, Unstructured};
use dmce_abi::{AddrLayout, AddrParts, DmceAddr};

pub fn run(data: &[u8]) {
    if let Ok(text) = str::from_utf8(data)
        && let Ok(layout) = text.parse::<AddrLayout>()
    {
        check_layout(layout);
    }
    // Bytes that end too soon are a shorter test.
    let _ = check_words(&mut Unstructured::new(data));
}

fn check_words(bytes: &mut Unstructured<'_>) -> Result<()> {
    let [server, block, cell] = bytes.arbitrary()?;
    let presets = [AddrLayout::IN_SERVER, AddrLayout::OS32, AddrLayout::OS64];
    let layout = match AddrLayout::new(server, block, cell) {
        Ok(layout) => {
            assert_eq!((layout.server_bits(), layout.block_bits()), (server, block));
            layout
        }
        Err(_) => *bytes.choose(&presets)?,
    };
    check_layout(layout);
    while !bytes.is_empty() {
        let raw = bytes.arbitrary()?;
        check_raw(layout, raw, bytes.arbitrary()?);
        let parts = AddrParts {
            server: bytes.arbitrary()?,
            block: bytes.arbitrary()?,
            cell: bytes.arbitrary()?,
        };
        check_parts(layout, parts);
    }
    Ok(())
}

fn check_layout(layout: AddrLayout) {
    let (server, block, cell) = (layout.server_bits(), layout.block_bits(), layout.cell_bits());
    assert_eq!(u32::from(server) + u32::from(block) + u32::from(cell), 64);
    assert_eq!(AddrLayout::new(server, block, cell), Ok(layout));
    assert_eq!(layout.to_string().parse(), Ok(layout));
    assert_eq!(layout.block_bytes(), 1 << cell);
    assert_eq!(layout.block_ids(), 1 << block);
}

fn check_raw(layout: AddrLayout, raw: u64, bytes: u64) {
    let Ok(addr) = DmceAddr::from_raw(layout, raw) else {
        return assert!(raw < layout.block_bytes(), "only block 0 of server 0 is reserved");
    };
    assert_eq!(addr.to_raw(), raw);
    let parts = addr.unpack(layout);
    assert_eq!(DmceAddr::pack(layout, parts), Ok(addr));
    let server_bytes = 1_u128 << (64 - layout.server_bits());
    let within = u128::from(raw) % server_bytes + u128::from(bytes);
    match addr.checked_add(layout, bytes) {
        Ok(further) => {
            assert_eq!(u128::from(further.to_raw()), u128::from(raw) + u128::from(bytes));
            assert_eq!(further.unpack(layout).server, parts.server);
        }
        Err(_) => assert!(within >= server_bytes, "{raw:#x} and {bytes:#x} are on one server"),
    }
}

fn check_parts(layout: AddrLayout, parts: AddrParts) {
    let fits = |value: u64, bits: u8| u128::from(value) < 1 << bits;
    let all_fit = fits(parts.server.into(), layout.server_bits())
        && fits(parts.block.into(), layout.block_bits())
        && fits(parts.cell, layout.cell_bits());
    match DmceAddr::pack(layout, parts) {
        Ok(addr) => assert!(all_fit && addr.unpack(layout) == parts),
        Err(_) => assert!(!all_fit || (parts.server, parts.block) == (0, 0)),
    }
}
