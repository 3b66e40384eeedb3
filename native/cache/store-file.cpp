// An archive in a file: written under another name first, and nothing of it is taken that is not what was written.
#include "cache/store.h"

#include "cache/failure.h"
#include "cache/faults.h"

#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <random>

namespace {

struct llama_aircache_file_head {
    char     magic[8];
    uint32_t version;
    uint32_t n_sections;
    uint64_t shape; // of model and cache
    uint64_t id;    // of this archive: another number each time
    uint64_t bytes; // of all sections
};

constexpr char     ARCHIVE_MAGIC[] = "PACARCH\n";
constexpr uint32_t ARCHIVE_VERSION = 1;

struct llama_aircache_file_closer {
    void operator()(FILE * f) const { fclose(f); }
};

class llama_aircache_file_store : public llama_aircache_store {
public:
    llama_aircache_file_store(const std::string & path, const std::vector<section> & sections, uint64_t shape) :
            path(path) {
        memcpy(head.magic, ARCHIVE_MAGIC, sizeof(head.magic));
        head.version    = ARCHIVE_VERSION;
        head.n_sections = sections.size();
        head.shape      = shape;
        head.id         = new_id();
        for (const auto & s : sections) {
            offsets.push_back(sizeof(head) + head.bytes);
            sizes.push_back(s.bytes);
            head.bytes += s.bytes;
        }

        refuse_others();
        part = path + "." + std::to_string(head.id) + ".part"; // nobody else's
        file.reset(fopen(part.c_str(), "wbx"));
        if (!file) {
            throw failed(errno);
        }
        try {
            write(&head, sizeof(head));
        } catch (...) {
            remove(part.c_str());
            throw;
        }
    }

    ~llama_aircache_file_store() override {
        if (file) { // not finished
            file.reset();
            remove(part.c_str());
        }
        llama_aircache_file_head there;
        if (finished && read_head(there) && there.id == head.id) {
            remove(path.c_str());
        }
    }

    void save(size_t section, const pieces & from) override {
        const std::unique_ptr<uint8_t[]> data(new uint8_t[sizes[section]]);
        for (const auto & p : from) {
            get(p, data.get());
        }
        sums.push_back(checksum(data.get(), sizes[section]));
        write(data.get(), sizes[section]);
    }

    void finish() override {
        if (fclose(file.release()) != 0) {
            const int error = errno;
            remove(part.c_str());
            throw failed(error);
        }
        if (rename(part.c_str(), path.c_str()) != 0) {
            const int error = errno;
            remove(part.c_str());
            throw failed(error);
        }
        finished = true;
    }

    void check() const override {
        const opened in(fopen(path.c_str(), "rb"));
        if (!in) {
            throw failed(errno);
        }
        llama_aircache_file_head there;
        if (fread(&there, sizeof(there), 1, in.get()) != 1 || memcmp(there.magic, head.magic, sizeof(head.magic)) != 0) {
            throw damaged("it is not an archive");
        }
        if (there.version != head.version) {
            throw damaged("it is of another version");
        }
        if (there.n_sections != head.n_sections || there.shape != head.shape) {
            throw damaged("it belongs to another model, or to a cache of another type");
        }
        if (there.id != head.id || there.bytes != head.bytes) {
            throw damaged("another archive was written in its place");
        }
    }

    void load(size_t section, const pieces & to) const override {
        const opened in(fopen(path.c_str(), "rb"));
        if (!in) {
            throw failed(errno);
        }
        const size_t n = sizes[section];
        const std::unique_ptr<uint8_t[]> data(new uint8_t[n]);
        if (seek(in.get(), offsets[section]) != 0 || fread(data.get(), 1, n, in.get()) != n) {
            throw damaged("it is too short");
        }
        if (checksum(data.get(), n) != sums[section]) {
            throw damaged("its bytes are not those that were written");
        }
        for (const auto & p : to) {
            set(p, data.get());
        }
    }

private:
    using opened = std::unique_ptr<FILE, llama_aircache_file_closer>;

    static int seek(FILE * f, uint64_t offset) {
#ifdef _WIN32
        return _fseeki64(f, offset, SEEK_SET);
#else
        return fseeko(f, offset, SEEK_SET);
#endif
    }

    static uint64_t new_id() {
        std::random_device random;
        return (((uint64_t) random() << 32) | random()) ^ std::chrono::steady_clock::now().time_since_epoch().count();
    }

    // tells a change of any one bit, and nearly any other
    static uint64_t checksum(const uint8_t * data, size_t n) {
        uint64_t res = 0x9e3779b97f4a7c15ull ^ n;
        for (size_t i = 0; i < n; i += 8) {
            uint64_t word = 0;
            memcpy(&word, data + i, n - i < 8 ? n - i : 8);
            res  = (res ^ word)*0xff51afd7ed558ccdull;
            res ^= res >> 32;
        }
        return res;
    }

    llama_aircache_failure failed(int error) const {
        return { LLAMA_AIRCACHE_FILE, "the archive %s: %s", path.c_str(), strerror(error) };
    }

    llama_aircache_failure damaged(const char * why) const {
        return { LLAMA_AIRCACHE_FILE, "the archive %s cannot be used: %s", path.c_str(), why };
    }

    bool read_head(llama_aircache_file_head & res) const {
        const opened in(fopen(path.c_str(), "rb"));
        return in && fread(&res, sizeof(res), 1, in.get()) == 1 && memcmp(res.magic, ARCHIVE_MAGIC, sizeof(res.magic)) == 0;
    }

    // only archives are written over
    void refuse_others() const {
        const opened in(fopen(path.c_str(), "rb"));
        char magic[sizeof(head.magic)] = {};
        if (in && (fread(magic, sizeof(magic), 1, in.get()) != 1 || memcmp(magic, ARCHIVE_MAGIC, sizeof(magic)) != 0)) {
            throw llama_aircache_failure(LLAMA_AIRCACHE_FILE, "the archive %s: a file with this name is there, and is no archive", path.c_str());
        }
    }

    void write(const void * data, size_t n) {
        if (llama_aircache_fault("write") || fwrite(data, 1, n, file.get()) != n) {
            throw failed(errno ? errno : EIO);
        }
    }

    const std::string path;
    std::string part; // what is being written
    bool finished = false;
    opened file; // while it is written

    llama_aircache_file_head head = {};

    std::vector<size_t>   sizes;
    std::vector<uint64_t> offsets;
    std::vector<uint64_t> sums;
};

} // namespace

std::unique_ptr<llama_aircache_store> llama_aircache_store::in_file(const std::string & path, const std::vector<section> & sections, uint64_t shape) {
    return std::make_unique<llama_aircache_file_store>(path, sections, shape);
}
