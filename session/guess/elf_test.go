package guess

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
)

// elfNeeding is the smallest 64-bit ELF file that debug/elf reads with lib among the libraries it is linked with: a string
// table and a dynamic section with DT_NEEDED (elf(5)).
func elfNeeding(lib string) []byte {
	const head, section = 64, 64
	strs := append([]byte{0}, append([]byte(lib), 0)...)
	names := []byte("\x00.dynstr\x00.dynamic\x00.shstrtab\x00")
	var dyn bytes.Buffer
	for _, v := range []uint64{uint64(elf.DT_NEEDED), 1, uint64(elf.DT_NULL), 0} {
		binary.Write(&dyn, binary.LittleEndian, v)
	}
	strOff := uint64(head)
	dynOff := strOff + uint64(len(strs))
	nameOff := dynOff + uint64(dyn.Len())
	tableOff := nameOff + uint64(len(names))

	h := elf.Header64{Type: uint16(elf.ET_DYN), Machine: uint16(elf.EM_X86_64), Version: uint32(elf.EV_CURRENT), Shoff: tableOff,
		Ehsize: head, Shentsize: section, Shnum: 4, Shstrndx: 3}
	copy(h.Ident[:], elf.ELFMAG)
	h.Ident[elf.EI_CLASS], h.Ident[elf.EI_DATA], h.Ident[elf.EI_VERSION] = byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)
	var b bytes.Buffer
	binary.Write(&b, binary.LittleEndian, h)
	b.Write(strs)
	b.Write(dyn.Bytes())
	b.Write(names)
	for _, s := range []elf.Section64{
		{},
		{Name: 1, Type: uint32(elf.SHT_STRTAB), Off: strOff, Size: uint64(len(strs))},
		{Name: 9, Type: uint32(elf.SHT_DYNAMIC), Off: dynOff, Size: uint64(dyn.Len()), Link: 1, Entsize: 16},
		{Name: 18, Type: uint32(elf.SHT_STRTAB), Off: nameOff, Size: uint64(len(names))},
	} {
		binary.Write(&b, binary.LittleEndian, s)
	}
	return b.Bytes()
}
