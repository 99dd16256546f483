package seal

import "encoding/base64"

// Head returns what Check finds as the head of the file: the MAC of its last seal.
func (f *File) Head() string { return base64.StdEncoding.EncodeToString(f.mac) }
