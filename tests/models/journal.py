"""Records of the journal made and read slowly and plainly, one at a time."""
import struct

HEAD = struct.Struct("<IHHQQ")
SIZES = (128, 192, 320)


def crc32c(data, value=0):
    crc = ~value & 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return ~crc & 0xFFFFFFFF


def seed(run):
    return (run ^ run >> 32) & 0xFFFFFFFF


def record(slot, run, number, group):
    rest = HEAD.pack(0, len(slot), 0, number, group)[4:] + slot[8:]
    return struct.pack("<I", crc32c(rest, seed(run))) + rest


def whole(memory, at, run):
    """(size, number, group) of the whole record at *at*, or None."""
    if len(memory) - at < HEAD.size:
        return None
    crc, size, _, number, group = HEAD.unpack_from(memory, at)
    if size not in SIZES or at + size + 16 > len(memory):
        return None
    if crc != crc32c(memory[at + 4:at + size + 16], seed(run)):
        return None
    return size, number, group


def scan(memory, run, number, durable=0):
    """Offsets of the whole records, the end, and what is there by name."""
    at, out, last = 0, [], None
    while at < len(memory):
        found = whole(memory, at, run)
        good = found and found[1] == number and (
            found[2] == number or (found[2] < number and last in (None, found[2])))
        if not good:
            break
        last = found[2]
        out.append(at)
        number += 1
        at += found[0] + 16
    else:
        return out, at, "WHOLE"
    later = [w for i in range(at, len(memory), 16) if (w := whole(memory, i, run))]
    if number <= durable or any(group > number for _, _, group in later):
        return out, at, "CORRUPT"
    return out, at, "TORN" if any(memory[at:]) else "ZERO"
