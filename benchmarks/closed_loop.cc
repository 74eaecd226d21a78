// Calls and streams in closed loop by gRPC's C++ client, which costs a machine less than any in Python: benchmarks/edge.py
// builds and runs it (Debian: g++, pkg-config, libgrpc++-dev). It knows nothing of protobuf: messages come ready.
//
//   closed_loop TARGET /service/Method unary|stream|oip|echo WARM SECONDS [PATCH...] < LINES
//
// In TLS where the variable ROOTS names a file of authorities; each call shows TOKEN where it is set.
//
// One caller, and one stream, for each line: its step message in hex, and for a stream before it the message that opens
// it ("-" for none) and a space. A PATCH is "u64@OFFSET" or "varint@OFFSET": the caller's count of answers there, as 8
// bytes or as a varint of 5; "next@OFFSET" is a varint of that count plus 2. "stream" wants result frames without errors,
// "oip" answers of ModelStreamInfer without one, "echo" any message.
// It says BEGIN when WARM seconds are over and END after SECONDS more, then one line of JSON: {"done", "seconds",
// "client" (processor seconds), "p50", "p99" (seconds)}.
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <iterator>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

namespace {

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

double processor() {
  rusage used;
  getrusage(RUSAGE_SELF, &used);
  return used.ru_utime.tv_sec + used.ru_stime.tv_sec + 1e-6 * (used.ru_utime.tv_usec + used.ru_stime.tv_usec);
}

[[noreturn]] void fail(const std::string& why) {
  std::cerr << "closed_loop: " << why << std::endl;
  _exit(1);
}

std::string bytes_of(const std::string& hex) {
  std::string bytes;
  if (hex == "-") return bytes;
  for (size_t at = 0; at + 1 < hex.size(); at += 2) bytes.push_back(static_cast<char>(std::stoi(hex.substr(at, 2), nullptr, 16)));
  return bytes;
}

grpc::ByteBuffer buffer_of(const std::string& bytes) {
  grpc::Slice slice(bytes);
  return grpc::ByteBuffer(&slice, 1);
}

struct Patch {
  std::string kind;
  size_t offset;
};

void patch(std::string& message, const std::vector<Patch>& patches, uint64_t count) {
  for (const Patch& each : patches) {
    if (each.kind == "u64") {
      for (int place = 0; place < 8; place++) message[each.offset + place] = static_cast<char>(count >> (8 * place));
    } else {
      uint64_t value = each.kind == "next" ? count + 2 : count;
      for (int place = 0; place < 5; place++) message[each.offset + place] = static_cast<char>((value >> (7 * place) & 0x7f) | (place < 4 ? 0x80 : 0));
    }
  }
}

// One varint of a message; moves on behind it.
uint64_t varint(const uint8_t*& at, const uint8_t* end) {
  uint64_t value = 0;
  for (int shift = 0; at < end; shift += 7) {
    value |= static_cast<uint64_t>(*at & 0x7f) << shift;
    if (!(*at++ & 0x80)) break;
  }
  return value;
}

// Ends the program where a ModelStreamInferResponse says an error: its first field.
void check_infer(grpc::ByteBuffer& buffer) {
  std::vector<grpc::Slice> slices;
  buffer.Dump(&slices);
  std::string whole;
  for (const grpc::Slice& slice : slices) whole.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  if (!whole.empty() && whole[0] == '\x0a') fail("an error: " + whole);
}

// Whether a StreamResponse is a result; one with errors, or a refusal, ends the program.
bool is_result(grpc::ByteBuffer& buffer) {
  std::vector<grpc::Slice> slices;
  buffer.Dump(&slices);
  std::string whole;
  for (const grpc::Slice& slice : slices) whole.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  const uint8_t *at = reinterpret_cast<const uint8_t*>(whole.data()), *end = at + whole.size();
  bool result = false;
  while (at < end) {
    uint64_t tag = varint(at, end);
    if ((tag & 7) == 0) {
      varint(at, end);
      continue;
    }
    uint64_t length = varint(at, end);
    if (tag >> 3 == 6) fail("refused: " + std::string(reinterpret_cast<const char*>(at), length));
    if (tag >> 3 == 3) {
      result = true;
      const uint8_t *in = at, *behind = at + length;
      while (in < behind) {
        uint64_t inner = varint(in, behind);
        if ((inner & 7) == 0) {
          varint(in, behind);
        } else {
          uint64_t size = varint(in, behind);
          if (inner >> 3 == 7) fail("an error: " + std::string(reinterpret_cast<const char*>(in), size));
          in += size;
        }
      }
    }
    at += length;
  }
  return result;
}

class Clock {
 public:
  Clock(double warm, double seconds) : begin_(now() + warm), end_(begin_ + seconds) {}

  // Notes an answer to what was sent then; true when the time is over.
  bool note(double sent) {
    double at = now();
    if (at < begin_) return false;
    if (!began_) {
      began_ = at;
      used_ = processor();
      std::puts("BEGIN");
      std::fflush(stdout);
    }
    trips_.push_back(at - sent);
    return at >= end_;
  }

  [[noreturn]] void report() {
    double passed = now() - began_, client = processor() - used_;
    std::puts("END");
    std::sort(trips_.begin(), trips_.end());
    size_t count = trips_.size();
    std::printf("{\"done\": %zu, \"seconds\": %.6f, \"client\": %.6f, \"p50\": %.9f, \"p99\": %.9f}\n", count, passed, client, trips_[count / 2], trips_[count * 99 / 100]);
    std::fflush(stdout);
    _exit(0);
  }

 private:
  double begin_, end_, began_ = 0, used_ = 0;
  std::vector<double> trips_;
};

struct Caller {
  std::string opening, message;
  uint64_t count = 0;
  double sent = 0;
  bool opened = false;
  bool writing = false;  // An answer can be heard of before the write that it answers.
  bool owes = false;
  std::unique_ptr<grpc::ClientContext> context;
  std::unique_ptr<grpc::GenericClientAsyncReaderWriter> stream;
  std::unique_ptr<grpc::GenericClientAsyncResponseReader> call;
  grpc::ByteBuffer request, answer;
  grpc::Status status;
};

}  // namespace

int main(int argc, char** argv) {
  if (argc < 6) fail("usage: TARGET METHOD unary|stream|oip|echo WARM SECONDS [PATCH...] < LINES");
  std::string target = argv[1], method = argv[2], kind = argv[3];
  std::vector<Patch> patches;
  for (int at = 6; at < argc; at++) {
    std::string text = argv[at];
    size_t sign = text.find('@');
    patches.push_back({text.substr(0, sign), std::stoul(text.substr(sign + 1))});
  }
  std::vector<Caller> callers;
  for (std::string line; std::getline(std::cin, line);) {
    std::istringstream words(line);
    std::string first, second;
    words >> first >> second;
    Caller caller;
    if (second.empty()) {
      caller.message = bytes_of(first);
    } else {
      caller.opening = bytes_of(first);
      caller.message = bytes_of(second);
    }
    callers.push_back(std::move(caller));
  }
  auto credentials = grpc::InsecureChannelCredentials();
  if (const char* roots = std::getenv("ROOTS")) {
    std::ifstream file(roots);
    grpc::SslCredentialsOptions options;
    options.pem_root_certs.assign(std::istreambuf_iterator<char>(file), {});
    credentials = grpc::SslCredentials(options);
  }
  grpc::GenericStub stub(grpc::CreateChannel(target, credentials));
  const char* token = std::getenv("TOKEN");
  auto context = [&] {
    auto made = std::make_unique<grpc::ClientContext>();
    if (token) made->AddMetadata("authorization", std::string("Bearer ") + token);
    return made;
  };
  grpc::CompletionQueue queue;
  Clock clock(std::atof(argv[4]), std::atof(argv[5]));
  auto tag = [](size_t caller, int what) { return reinterpret_cast<void*>(caller << 2 | what); };
  enum { kReady, kWritten, kRead };

  auto ask = [&](size_t number) {
    Caller& caller = callers[number];
    if (caller.writing) {
      caller.owes = true;
      return;
    }
    patch(caller.message, patches, caller.count);
    caller.request = buffer_of(caller.message);
    caller.sent = now();
    if (kind == "unary") {
      caller.context = context();
      caller.call = stub.PrepareUnaryCall(caller.context.get(), method, caller.request, &queue);
      caller.call->StartCall();
      caller.call->Finish(&caller.answer, &caller.status, tag(number, kRead));
    } else {
      caller.writing = true;
      caller.stream->Write(caller.request, tag(number, kWritten));
    }
  };

  for (size_t number = 0; number < callers.size(); number++) {
    Caller& caller = callers[number];
    if (kind == "unary") {
      ask(number);
    } else {
      caller.context = context();
      caller.stream = stub.PrepareCall(caller.context.get(), method, &queue);
      caller.stream->StartCall(tag(number, kReady));
    }
  }
  void* found;
  bool well;
  while (queue.Next(&found, &well)) {
    size_t number = reinterpret_cast<uintptr_t>(found) >> 2, what = reinterpret_cast<uintptr_t>(found) & 3;
    Caller& caller = callers[number];
    if (!well) {
      if (caller.stream) caller.stream->Finish(&caller.status, tag(number, 3));
      void* last;
      while (caller.stream && queue.Next(&last, &well) && last != tag(number, 3)) {
      }
      fail("a stream ended: " + std::to_string(caller.status.error_code()) + " " + caller.status.error_message());
    }
    if (kind == "unary") {
      if (!caller.status.ok()) fail("a call failed: " + caller.status.error_message());
      caller.count++;
      if (clock.note(caller.sent)) clock.report();
      ask(number);
    } else if (what == kReady) {
      if (caller.opening.empty()) {
        caller.opened = true;
        ask(number);
      } else {
        caller.writing = true;
        caller.stream->Write(buffer_of(caller.opening), tag(number, kWritten));
      }
      caller.stream->Read(&caller.answer, tag(number, kRead));
    } else if (what == kWritten) {
      caller.writing = false;
      if (caller.owes) {
        caller.owes = false;
        ask(number);
      }
    } else if (what == kRead) {
      if (!caller.opened) {
        caller.opened = true;
        ask(number);
      } else if (kind == "echo" || kind == "oip" || is_result(caller.answer)) {
        if (kind == "oip") check_infer(caller.answer);
        caller.count++;
        if (clock.note(caller.sent)) clock.report();
        ask(number);
      }
      caller.stream->Read(&caller.answer, tag(number, kRead));
    }
  }
}
